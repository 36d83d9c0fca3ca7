"""The words that cross a border between rooms: array aliases with their shapes and the protocols every room speaks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TypeAlias, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

Noise: TypeAlias = Float[Tensor, "batch noise_channels noise_frames noise_height noise_width"]
"""Initial Gaussian tensor of sampling."""

Latents: TypeAlias = Float[Tensor, "batch channels latent_frames latent_height latent_width"]
"""Compressed video: exactly what the decoder of the model's autoencoder takes."""

Frames: TypeAlias = Float[Tensor, "batch frames 3 height width"]
"""Decoded video in [0, 1]."""

Scores: TypeAlias = Float[Tensor, " batch"]
"""One number per video, higher is better."""

Granularity: TypeAlias = Literal["frame", "clip"]
"""What a reward looks at. A ``frame`` reward is the mean of its scores of single frames, so it may be given them in any
portions; a ``clip`` reward needs all its frames at once."""


@dataclass(frozen=True, slots=True)
class TruncationPlan:
    """Which denoising steps of one sampling carry gradient, and how."""

    num_inference_steps: int
    grad_steps: tuple[int, ...]
    """Ascending indices of the graded denoising steps, the noisiest is 0; never empty."""
    backprop_through_input: bool = True
    """Keep the denoiser's input Jacobian, so that gradient reaches earlier graded steps through later ones."""
    recompute: bool | Literal["earlier"] = True
    """Recompute a graded denoiser call in the backward pass instead of keeping its activations; with ``earlier`` all but
    the last, the first that the backward pass needs. Exact."""
    reference_weight: float = 0.0
    """Weight in the loss of `PipelineModel`'s pull: the distance of the graded predictions to those of the pretrained model."""

    def recomputes(self, step: int) -> bool:
        """Whether a graded denoising step is recomputed."""
        return self.recompute is True or (self.recompute == "earlier" and step != self.grad_steps[-1])


@runtime_checkable
class Reward(Protocol):
    """Scores videos, differentiably. Frozen, in eval mode, without state that one call leaves for the next."""

    granularity: Granularity
    unit: str

    def __call__(self, frames: Frames, prompts: Sequence[str], /) -> Scores:
        """One score per video, differentiable in ``frames``; video ``i`` is scored against ``prompts[i]``."""
        ...


@runtime_checkable
class RemoteReward(Protocol):
    """A reward that another process computes: it is asked, and the answer is fetched later."""

    granularity: Granularity
    unit: str

    def submit_scores(
        self, frames: Frames, prompts: Sequence[str], chunk_size: int, /
    ) -> Callable[[], Scores]:
        """Sends the frames; the call that is returned waits for the scores."""
        ...

    def submit_gradient(
        self, frames: Frames, prompts: Sequence[str], chunk_size: int, /
    ) -> Callable[[], tuple[Scores, Frames]]:
        """Sends the frames; the call that is returned waits for the scores and ∂(sum of scores)/∂frames."""
        ...


@runtime_checkable
class VideoDecoder(Protocol):
    """The decoder of a video model, portion by portion, so that a gradient through it never needs the whole graph."""

    def num_frames(self, latents: Latents, /) -> int:
        """Frames of the decoded video."""
        ...

    def chunks(self, latents: Latents, wanted: Sequence[int], /) -> list[tuple[int, ...]]:
        """The frames to decode, in portions that bound memory and in order; together they contain all of ``wanted``."""
        ...

    def decode(self, latents: Latents, state: Any, chunk: tuple[int, ...], /) -> tuple[Frames, Any]:
        """The frames of one portion, in [0, 1] and at least float32, and the decoder's cache for the next portion.

        ``state`` is None for the first portion. Differentiable in ``latents`` and ``state``.
        """
        ...


@runtime_checkable
class Sliceable(Protocol):
    """Something with one entry per video, of which a part can be taken."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice | list[int], /) -> Self: ...


@runtime_checkable
class Trajectory(Sliceable, Protocol):
    """Videos with what their denoising went through."""

    @property
    def latents(self) -> Latents | None:
        """What the decoder takes; None for videos that were given, not made."""
        ...

    @property
    def log_probabilities(self) -> Tensor:
        """Of each denoising step, ``batch steps``; empty where the scheduler is deterministic."""
        ...

    @property
    def stochastic(self) -> tuple[int, ...]:
        """Denoising steps that add noise."""
        ...

    @staticmethod
    def join(parts: Sequence[Any], /) -> Any:
        """The parts one after the other."""
        ...


@runtime_checkable
class VideoModel(Protocol):
    """A pretrained video diffusion model with an adapter: the only trainable thing in a run."""

    decoder: VideoDecoder
    denoiser_calls: int
    """Forward passes of the denoiser so far, per video and guidance branch; recomputations are not counted."""

    def noise(self, seeds: Sequence[int], /) -> Noise:
        """The initial noise of each video, a function of its seed alone."""
        ...

    def encode(self, prompts: Sequence[str], images: Sequence[Path] | None = None, /) -> Sliceable:
        """The conditioning of each video, from its prompt and, where the family makes videos from images, its image."""
        ...

    def sample(self, conditioning: Sliceable, seeds: Sequence[int], /) -> Latents:
        """StepContext sampling without gradient."""
        ...

    def sample_prefix(
        self, conditioning: Sliceable, plan: TruncationPlan, seeds: Sequence[int], /
    ) -> Sliceable:
        """Sampling without gradient up to the first graded denoising step."""
        ...

    def sample_with_grad(self, state: Sliceable, conditioning: Sliceable, plan: TruncationPlan, /) -> Latents:
        """The rest of the sampling, differentiable in the adapter."""
        ...

    def check_densities(self) -> None:
        """Raises ValueError unless the probability of each denoising step is known."""
        ...

    def sample_trajectory(self, conditioning: Sliceable, seeds: Sequence[int], /) -> Trajectory:
        """StepContext sampling without gradient, with the sample before and after every denoising step."""
        ...

    def encode_videos(self, frames: Frames, seeds: Sequence[int], /) -> Trajectory:
        """Given videos, as if their sampling had just ended; raises ValueError where the family cannot encode."""
        ...

    def log_probabilities(self, trajectory: Trajectory, conditioning: Sliceable, step: int, /) -> Scores:
        """log p(next sample | sample) of a denoising step per element of the latents, differentiable in the adapter."""
        ...

    def denoising_errors(
        self, trajectory: Trajectory, conditioning: Sliceable, noise_seeds: Sequence[int], step: int, /
    ) -> Scores:
        """Mean squared error on each finished video, noised to a denoising step, differentiable in the adapter."""
        ...

    def without_adapter(self) -> AbstractContextManager[None]:
        """Inside, the model is the pretrained one."""
        ...

    def add_adapter(self, adapter: Any, seed: int, /) -> None:
        """Add a trainable adapter that changes nothing yet, in the place of an earlier one."""
        ...

    def adapter_parameters(self) -> list[nn.Parameter]:
        """The trainable parameters, in an order that never changes."""
        ...

    def save_adapter(self, folder: Path, /) -> None:
        """Write the adapter in the format documented by the model's family."""
        ...

    def load_adapter(self, folder: Path, /) -> None:
        """Read an adapter that `save_adapter` wrote; raises ValueError when it belongs to another model."""
        ...

    def modules(self) -> list[nn.Module]:
        """All that occupies memory."""
        ...

    def free_text_encoders(self) -> None:
        """Give back the memory of what only `encode` needs."""
        ...
