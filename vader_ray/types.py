"""Shared tensor types with their shapes, and the protocols of rewards, decoders and video models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TypeAlias, TypeVar, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

Noise: TypeAlias = Float[Tensor, "batch noise_channels noise_frames noise_height noise_width"]
"""Initial Gaussian tensor of sampling."""

Latents: TypeAlias = Float[Tensor, "batch channels latent_frames latent_height latent_width"]
"""Compressed video: the exact input of the autoencoder's decoder."""

Frames: TypeAlias = Float[Tensor, "batch frames 3 height width"]
"""Decoded video in [0, 1]."""

Scores: TypeAlias = Float[Tensor, " batch"]
"""One number per video, higher is better."""

VIDEO_MESH = ("videos", "guidance", "ring", "ulysses")
"""Dimensions of a run's workers if several compute the same videos: groups with different videos, branches of
guidance, tokens. The last two are diffusers' names for two ways to divide tokens."""

Images: TypeAlias = Float[Tensor, "batch 3 height width"]
"""First frames of videos in [0, 1]."""

Granularity: TypeAlias = Literal["frame", "clip"]
"""Input unit of a reward. The score of a ``frame`` reward is the mean of its scores of single frames, so its
frames may be scored in chunks; a ``clip`` reward needs all frames in one call."""

ResultT = TypeVar("ResultT", covariant=True)


@dataclass(frozen=True, slots=True)
class GradStep:
    """How the reward gradient passes one gradient step; the defaults are those of backpropagation."""

    coupling: float = 1.0
    """Factor of the gradient through the denoiser's input, from this gradient step to the earlier ones; with
    0 they do not depend on it."""
    gain: float = 1.0
    """Factor of the gradient at the denoiser's output."""
    prior: float = 1.0
    """Factor of the step's reference penalty, see `TruncationPlan.reference_weight`."""


@dataclass(frozen=True, slots=True)
class SamplingSchedule:
    """The scheduler's steps as numbers, one per denoising step."""

    coefficients: tuple[float, ...]
    """Coefficient of each step's prediction in the last sample, while the other predictions are constant. For
    a flow and Euler's method it is the difference of the noise levels, σ_{k+1} − σ_k."""
    noise_levels: tuple[float, ...]
    """Share of noise in the sample before each step, 0 to 1: s / (a + s) for a · clean + s · noise, the σ of
    a flow."""


@dataclass(frozen=True, slots=True)
class TruncationPlan:
    """The gradient steps of one sampling: denoising steps through which the reward gradient flows."""

    num_inference_steps: int
    """Number of denoising steps of the sampling."""
    grad_steps: tuple[int, ...]
    """Indices of the gradient steps, ascending and never empty; the noisiest denoising step is 0."""
    rules: tuple[GradStep, ...] = ()
    """Rule of each gradient step; empty is backpropagation in all of them."""
    base_adjoint: bool = False
    """Let the gradient flow to earlier gradient steps through the denoiser without its adapter."""
    reward_step: int | None = None
    """Denoising step at whose prediction of the clean video the sampling ends and the reward is computed;
    None for the last sample."""
    distances: tuple[tuple[float, ...], ...] = ()
    """Rows of coefficients of the denoising steps' predictions; each sum is a difference between the sampled
    video and an approximation of it. A video's gradient is divided by the sum of their mean absolute values.
    Coefficients before the first gradient step are 0."""
    min_distance: float = 0.0
    """Lower bound of each mean absolute value."""
    recompute: bool | Literal["earlier", "nested"] = True
    """Recompute a gradient step's forward pass in the backward pass instead of keeping its activations;
    exact. ``earlier`` keeps those of the last gradient step, the first that the backward pass needs;
    ``nested`` recomputes steps whose blocks are recomputed, too."""
    reference_weight: float = 0.0
    """Weight in the loss of one gradient step's reference penalty: the mean squared distance, per video,
    between the predictions with and without the adapter. `accumulate_gradient` sets it; 0 saves the call
    without the adapter."""
    num_endings: int = 1
    """Times that the gradient steps, then the last ones, are sampled; see `vader_ray.alignment.endings`."""
    num_clips: int = 1
    """Clips of each video, every one with these gradient steps; see `vader_ray.alignment.clips`."""
    num_gradient_clips: int = 1
    """Clips that carry gradient, the last ones."""

    def rule(self, step: int) -> GradStep:
        """Return the rule of a gradient step."""
        return self.rules[self.grad_steps.index(step)] if self.rules else GradStep()

    def recomputes(self, step: int, *, in_blocks: bool) -> bool:
        """Whether the forward pass of a gradient step is recomputed as a whole in the backward pass.

        Args:
            step: index of the gradient step.
            in_blocks: whether each block of the denoiser is recomputed by itself; computing the step again
                before them would be a third forward pass.
        """
        if in_blocks:
            return self.recompute == "nested"
        return self.recompute is True or (self.recompute == "earlier" and step != self.grad_steps[-1])


@runtime_checkable
class Reward(Protocol):
    """A differentiable score of videos; frozen, in eval mode, without state between calls."""

    granularity: Granularity
    unit: str

    def __call__(self, frames: Frames, prompts: Sequence[str], /) -> Scores:
        """Return one score per video, differentiable in ``frames``; prompt ``i`` is that of video ``i``."""
        ...


@runtime_checkable
class RewardFuture(Protocol[ResultT]):
    """A pending result of a reward."""

    def result(self) -> ResultT:
        """Wait for the result and return it; call it once."""
        ...


@runtime_checkable
class RemoteReward(Protocol):
    """A reward that another process computes: requests return at once, their results are awaited later."""

    granularity: Granularity
    unit: str

    def submit_scores(
        self, frames: Frames, prompts: Sequence[str], chunk_size: int, /
    ) -> RewardFuture[Scores]:
        """Send frames to be scored; the result is one score per video."""
        ...

    def submit_gradient(
        self, frames: Frames, prompts: Sequence[str], chunk_size: int, /
    ) -> RewardFuture[tuple[Scores, Frames]]:
        """Send frames to be scored; the result is one score per video, and ∂(sum of scores)/∂frames."""
        ...


@runtime_checkable
class VideoDecoder(Protocol):
    """The decoder of a video model: chunk by chunk, so that no gradient needs the graph of a whole video."""

    chunks_are_independent: bool
    """Whether each chunk is decoded without the cache of the one before."""

    def num_frames(self, latents: Latents, /) -> int:
        """Return the number of frames of the decoded video."""
        ...

    def chunks(self, latents: Latents, wanted: Sequence[int], /) -> list[tuple[int, ...]]:
        """Split the frames to decode into ascending chunks that bound memory and contain ``wanted``."""
        ...

    def decode(self, latents: Latents, state: Any, chunk: tuple[int, ...], /) -> tuple[Frames, Any]:
        """Decode one chunk; return its frames in [0, 1], at least float32, and the cache for the next chunk.

        Differentiable in ``latents`` and ``state``; ``state`` is None for the first chunk.
        """
        ...


@runtime_checkable
class Sliceable(Protocol):
    """A batch with one entry per video, from which a part can be taken."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice | list[int], /) -> Self: ...


@runtime_checkable
class Trajectory(Sliceable, Protocol):
    """Videos with the samples and log-probabilities of their denoising steps."""

    @property
    def latents(self) -> Latents | None:
        """The decoder's input; None for videos that were given and not sampled."""
        ...

    @property
    def log_probabilities(self) -> Tensor:
        """log p per latent element and denoising step, ``batch steps``; empty for deterministic sampling."""
        ...

    @property
    def stochastic(self) -> tuple[int, ...]:
        """Indices of the denoising steps that add noise."""
        ...

    @staticmethod
    def join(parts: Sequence[Any], /) -> Any:
        """Concatenate trajectories."""
        ...


class GatheredPart(Protocol):
    """A part of a network whose frozen weights are gathered together."""

    @property
    def module(self) -> nn.Module:
        """The part."""
        ...

    def share_bytes(self, num_workers: int, /) -> int:
        """Return the bytes of the largest share of the frozen weights when divided over some workers."""
        ...


class DividedNetwork(Protocol):
    """A network whose frozen weights are divided over workers, and gathered block by block."""

    @property
    def network(self) -> nn.Module:
        """The network."""
        ...

    def parts(self) -> Sequence[GatheredPart]:
        """Return the parts of the network, which are gathered one by one."""
        ...

    def frozen_bytes(self) -> int:
        """Return the bytes of the frozen weights."""
        ...

    def share_bytes(self, num_workers: int, /) -> int:
        """Return the bytes of the largest share of the frozen weights when divided over some workers."""
        ...

    def gathered_bytes(self) -> int:
        """Return the bytes of whole weights in memory during a call."""
        ...


@runtime_checkable
class SamplingModel(Protocol):
    """A pretrained video diffusion model with a trainable adapter, as far as VADER uses it."""

    decoder: VideoDecoder
    denoiser_calls: int
    """Forward passes of the denoiser so far, per video and guidance branch; recomputations are not
    counted."""

    def noise(self, seeds: Sequence[int], /) -> Noise:
        """Draw the initial noise of each video, a function of its seed alone."""
        ...

    def num_loops(self, num_videos: int, /) -> int:
        """Return the number of passes through the denoising loop in which some videos are sampled."""
        ...

    def encode(self, prompts: Sequence[str], images: Sequence[Path] | None = None, /) -> Sliceable:
        """Encode the conditioning of each video: its prompt and, for image-to-video, its image."""
        ...

    def sample(
        self,
        conditioning: Sliceable,
        seeds: Sequence[int],
        adapter_strengths: Sequence[float] | None = None,
        /,
    ) -> Latents:
        """Sample videos without gradient.

        ``adapter_strengths`` has the factor of the adapter's update in each denoising step; None is 1.
        """
        ...

    def sampling_schedule(self, conditioning: Sliceable, /) -> SamplingSchedule:
        """Return the scheduler's coefficients and noise levels; calls no denoiser.

        Args:
            conditioning: of one video or more.
        """
        ...

    def sample_prefix(
        self, conditioning: Sliceable, plan: TruncationPlan, seeds: Sequence[int], /
    ) -> Sliceable:
        """Sample without gradient up to the first gradient step."""
        ...

    def sample_with_grad(self, state: Sliceable, conditioning: Sliceable, plan: TruncationPlan, /) -> Latents:
        """Continue sampling from the first gradient step to the end, differentiable in the adapter.

        Within ``torch.no_grad`` there is no graph.
        """
        ...

    def add_adapter(self, adapter: Any, seed: int, /) -> None:
        """Add a trainable adapter that changes nothing yet; it replaces an earlier one."""
        ...

    def adapter_parameters(self) -> list[nn.Parameter]:
        """Return the trainable parameters, in an order that never changes."""
        ...

    def save_adapter(self, folder: Path, /) -> None:
        """Write the adapter in the format that the model's family documents."""
        ...

    def load_adapter(self, folder: Path, /) -> None:
        """Read an adapter that `save_adapter` wrote; raises ValueError if it belongs to another model."""
        ...

    def modules(self) -> list[nn.Module]:
        """Return all networks that occupy memory."""
        ...

    def sharded_networks(self) -> Sequence[DividedNetwork]:
        """Return those of them whose frozen weights ``runtime.shard`` divides."""
        ...

    def free_text_encoders(self) -> None:
        """Free the memory of the networks that only `encode` needs."""
        ...


@runtime_checkable
class EndingsModel(SamplingModel, Protocol):
    """A model that also samples its gradient steps several times from one prefix."""

    def check_endings(self) -> None:
        """Raise ValueError unless a finished video can be taken back to a denoising step by adding noise."""
        ...

    def sample_endings(
        self, state: Any, conditioning: Any, plan: TruncationPlan, seeds: Sequence[Sequence[int]], /
    ) -> Iterator[Latents]:
        """Yield the latents of `sample_with_grad`, and then one further ending for each row of seeds.

        A further ending begins at the plan's first gradient step with the finished video and fresh noise, a
        function of its video's seed in the row alone.
        """
        ...


@runtime_checkable
class ClipsModel(SamplingModel, Protocol):
    """A model that also continues a video from an image, with gradient in the image."""

    def check_clips(self) -> None:
        """Raise ValueError unless the model makes videos from images, and its pipeline sees all of them."""
        ...

    def with_images(self, conditioning: Any, images: Images, /) -> Any:
        """Return the conditioning of the same videos with other first frames.

        The latents of `sample_with_grad` are then differentiable in the images, too.
        """
        ...


@runtime_checkable
class TrajectoryModel(SamplingModel, Protocol):
    """A model that also gives log-probabilities and errors of single denoising steps, for DDPO and DPO."""

    def check_densities(self) -> None:
        """Raise ValueError unless the probability of each denoising step is known."""
        ...

    def sample_trajectory(self, conditioning: Sliceable, seeds: Sequence[int], /) -> Trajectory:
        """Sample without gradient and keep the sample before and after every denoising step."""
        ...

    def encode_videos(self, frames: Frames, seeds: Sequence[int], /) -> Trajectory:
        """Encode given videos as finished trajectories; raises ValueError if the family cannot encode."""
        ...

    def log_probabilities(self, trajectory: Trajectory, conditioning: Sliceable, step: int, /) -> Scores:
        """Return log p(next sample | sample) of a denoising step, per element of the latents.

        Differentiable in the adapter.
        """
        ...

    def denoising_errors(
        self, trajectory: Trajectory, conditioning: Sliceable, noise_seeds: Sequence[int], step: int, /
    ) -> Scores:
        """Return the mean squared prediction error of each finished video, noised to a denoising step.

        Differentiable in the adapter.
        """
        ...

    def without_adapter(self) -> AbstractContextManager[None]:
        """Switch the adapter off within the context, so that the model is the pretrained one."""
        ...
