"""One adapter that drives any diffusers video pipeline through the pipeline's own loop, with gradient where asked.

The pipeline's own no-gradient output is the oracle: `PipelineModel.sample` gives the same latents bit for bit in float32.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from vader_ray.config import ActivationCheckpointing, AdapterConfig, ModelConfig, SamplingConfig
from vader_ray.models.adapters import export, lora
from vader_ray.models.core import memory_optimizations, transitions
from vader_ray.models.core.conditioning import Conditioning, encode_texts, open_images
from vader_ray.models.core.decoders import Framewise2D
from vader_ray.models.core.loading import fetch_pipeline
from vader_ray.models.core.loop_hooks import (
    DecoderReached,
    LoopHook,
    PrefixDone,
    SamplingState,
    cast,
    frozen_dtype,
)
from vader_ray.models.core.transitions import (
    LoopReady,
    PredictionProbe,
    StepReached,
    StopBeforeDenoiser,
    Trajectory,
    TrajectoryRecorder,
)
from vader_ray.types import Frames, Latents, Noise, Scores, TruncationPlan, VideoDecoder

_LOOPS_OWN = -2
"""The step of `LoopHook.generators` whose noise the loop draws itself: image augmentation, a decoder's noise."""


class PipelineModel:
    """A `vader_ray.types.VideoModel` over a diffusers pipeline; a family overrides what differs and no more."""

    denoiser_name = "transformer"
    adapter_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    stock_loader = False
    """Whether diffusers' ``load_lora_weights`` works for this pipeline: adapters are then saved in its format."""
    embeddings: tuple[str, ...] = ("prompt_embeds", "negative_prompt_embeds")
    """Names under which the pipeline takes what its ``encode_prompt`` returns, in that order."""
    is_image_to_video = False
    no_guidance_kwargs: Mapping[str, float] = MappingProxyType({"guidance_scale": 1.0})
    """Arguments that switch guidance off: a denoising error is that of the conditional prediction."""
    batched = True
    """Whether the pipeline can make several videos at once."""

    def __init__(self, pipe: Any, sampling: SamplingConfig, decoder: VideoDecoder) -> None:
        self.pipe = pipe
        self.sampling = sampling
        self.decoder = decoder
        self.denoiser_calls = 0
        self._scheduler_is_set_up = False
        pipe.set_progress_bar_config(disable=True)
        for module in self.modules():
            module.requires_grad_(False).eval()
        self._check_scheduler()
        memory_optimizations.check_cache(sampling.prefix_cache, list(self.denoisers().values()))

    @property
    def denoiser(self) -> nn.Module:
        """The network that predicts noise, velocity or flow; the first, where there are several."""
        return next(iter(self.denoisers().values()))

    def denoisers(self) -> dict[str, nn.Module]:
        """Every denoiser by its name in the pipeline."""
        return {self.denoiser_name: getattr(self.pipe, self.denoiser_name)}

    def vae_scale_factors(self) -> tuple[int, int]:
        """Frames per latent frame and pixels per latent pixel."""
        raise NotImplementedError

    def latent_channels(self) -> int:
        """Channels of the latents."""
        channels: int = self.denoiser.config.in_channels  # type: ignore[union-attr,assignment]
        return channels

    @classmethod
    def fetch(cls, model: ModelConfig) -> Path:
        """The folder of the weights, after their download where they are on the hub."""
        return fetch_pipeline(model)

    def latent_shape(self) -> tuple[int, int, int, int]:
        """Channels, frames, height, width of one video's noise.

        Raises:
            ValueError: the pipeline would round the number of frames.
        """
        (per_frame, per_pixel), sampling = self.vae_scale_factors(), self.sampling
        frames, rest = divmod(sampling.num_frames - 1, per_frame)
        if rest:
            near = [frames * per_frame + 1, (frames + 1) * per_frame + 1]
            raise ValueError(
                f"sampling.num_frames={sampling.num_frames} is impossible here; choose {near[0]} or {near[1]}"
            )
        return self.latent_channels(), frames + 1, sampling.height // per_pixel, sampling.width // per_pixel

    def pipeline_kwargs(self) -> dict[str, Any]:
        """Settings of the pipeline call that are not tensors."""
        sampling = self.sampling
        return {
            "num_frames": sampling.num_frames,
            "height": sampling.height,
            "width": sampling.width,
            "num_inference_steps": sampling.num_inference_steps,
            "guidance_scale": sampling.guidance_scale,
        }

    def pack_latents(self, noise: Noise) -> Tensor:
        """The noise in the layout that the pipeline takes."""
        return noise

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], images: Sequence[Path] | None = None) -> Conditioning:
        """The conditioning of each video, as the encoders give it.

        Raises:
            ValueError: the family makes videos from images and there are none.
        """
        columns = (
            encode_texts(self.pipe, self.sampling, self.embeddings, list(prompts)) if self.embeddings else {}
        )
        if self.is_image_to_video:
            columns["image"] = open_images(self.sampling, images)
        return Conditioning(columns)

    def noise(self, seeds: Sequence[int]) -> Noise:
        """The initial noise of each video, drawn on the CPU from its seed so that every device agrees."""
        shape = self.latent_shape()
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(noise).to(self.pipe.device, self._sampling_dtype())

    @torch.no_grad()
    def sample(self, conditioning: Conditioning, seeds: Sequence[int]) -> Latents:
        """StepContext sampling without gradient."""
        noise = self.noise(seeds)
        parts = self._parts(len(seeds))
        return torch.cat(
            [
                self._run_pipeline(
                    self.pack_latents(noise[part]), conditioning[part], LoopHook(seeds[part], plan=None)
                )
                for part in parts
            ]
        )

    def blocks(self) -> list[nn.Module]:
        """The parts of the denoisers that are recomputed or compiled one by one."""
        return [
            block for denoiser in self.denoisers().values() for block in memory_optimizations.blocks(denoiser)
        ]

    def apply_memory_optimizations(
        self, activation_checkpointing: ActivationCheckpointing, *, compile_blocks: bool
    ) -> None:
        """Trade time against memory, see `vader_ray.config.RuntimeConfig`; to be called once."""
        if compile_blocks:
            memory_optimizations.compile_blocks(self.blocks())
        memory_optimizations.apply_activation_checkpointing(self.blocks(), activation_checkpointing)

    @torch.no_grad()
    def sample_prefix(
        self, conditioning: Conditioning, plan: TruncationPlan, seeds: Sequence[int]
    ) -> SamplingState:
        """Sampling without gradient up to the first graded denoising step."""
        parts = self._parts(len(seeds))
        return SamplingState.join(
            [self._sample_prefix(conditioning[part], plan, seeds[part]) for part in parts]
        )

    def _sample_prefix(
        self, conditioning: Conditioning, plan: TruncationPlan, seeds: Sequence[int]
    ) -> SamplingState:
        noise, first = self.noise(seeds), plan.grad_steps[0]
        if first == 0:
            return SamplingState(noise, tuple(seeds), None, {})
        hook = LoopHook(seeds, plan=None, stop_before=first)
        try:
            with memory_optimizations.first_block_cache(
                self.sampling.prefix_cache, list(self.denoisers().values())
            ):
                self._run_pipeline(self.pack_latents(noise), conditioning, hook)
        except PrefixDone:
            return SamplingState(noise, tuple(seeds), hook.outputs, hook.scheduler_state)
        raise AssertionError("the pipeline ended before its first graded denoising step")

    def sample_with_grad(
        self, state: SamplingState, conditioning: Conditioning, plan: TruncationPlan
    ) -> Latents:
        """The rest of the sampling, differentiable in the adapter."""
        parts = self._parts(len(state))
        return torch.cat([self._sample_with_grad(state[part], conditioning[part], plan) for part in parts])

    def _sample_with_grad(
        self, state: SamplingState, conditioning: Conditioning, plan: TruncationPlan
    ) -> Latents:
        resume = state if state.outputs is not None else None
        with torch.enable_grad():
            return self._run_pipeline(
                self.pack_latents(state.noise), conditioning, LoopHook(state.seeds, plan=plan, resume=resume)
            )

    def check_densities(self) -> None:
        """Raises ValueError unless the probability of each denoising step is known."""
        transitions.check_density(self.pipe.scheduler)

    @torch.no_grad()
    def sample_trajectory(self, conditioning: Conditioning, seeds: Sequence[int]) -> Trajectory:
        """StepContext sampling, with the sample before and after every denoising step."""
        return Trajectory.join(
            [self._sample_trajectory(conditioning[part], seeds[part]) for part in self._parts(len(seeds))]
        )

    def _sample_trajectory(self, conditioning: Conditioning, seeds: Sequence[int]) -> Trajectory:
        hook = TrajectoryRecorder(
            seeds, densities=self.sampling.eta > 0 and transitions.has_density(self.pipe.scheduler)
        )
        latents = self._run_pipeline(self.pack_latents(self.noise(seeds)), conditioning, hook)
        return hook.trajectory(seeds, latents)

    @torch.no_grad()
    def encode_videos(self, frames: Frames, seeds: Sequence[int]) -> Trajectory:
        """Given videos, as if the loop had just finished them.

        Raises:
            ValueError: the family's autoencoder is not encoded with here.
        """
        if not isinstance(self.decoder, Framewise2D):
            raise ValueError(
                f"algorithm.pairs: the videos of a file can be encoded by autoencoders of single frames, not by "
                f"{type(self.pipe.vae).__name__}; leave algorithm.pairs out, and pairs are made as training goes"
            )
        latents = self.decoder.encode(frames.to(self.pipe.device)).to(self._sampling_dtype())
        return Trajectory(
            tuple(seeds), None, (self.to_scheduler_layout(latents),), latents.new_zeros(len(seeds), 0)
        )

    def to_scheduler_layout(self, latents: Noise) -> Tensor:
        """Latents in the layout in which ``scheduler.step`` gets them."""
        return self.pack_latents(latents)

    def log_probabilities(self, trajectory: Trajectory, conditioning: Conditioning, step: int) -> Scores:
        """log p(next sample | sample) of one denoising step per element of the latents, differentiable in the adapter."""
        return torch.cat(
            [
                self._log_probabilities(trajectory[part], conditioning[part], step)
                for part in self._parts(len(trajectory))
            ]
        )

    def _log_probabilities(self, trajectory: Trajectory, conditioning: Conditioning, step: int) -> Scores:
        with torch.enable_grad():
            reached = self._reach(trajectory.samples[step], trajectory.seeds, conditioning, step, {})
            mean, deviation = transitions.transition(reached.step, reached.given)
            return transitions.log_density(trajectory.samples[step + 1], mean, deviation, len(trajectory))

    def denoising_errors(
        self, trajectory: Trajectory, conditioning: Conditioning, noise_seeds: Sequence[int], step: int
    ) -> Scores:
        """Mean squared error of the denoiser on each finished video, noised to one denoising step; differentiable.

        The error is that of what the denoiser predicts (noise, velocity, flow), without guidance.

        Args:
            noise_seeds: of the noise of each video; those that share a seed share the noise.
        """
        parts = self._parts(len(trajectory))
        return torch.cat(
            [self._denoising_errors(trajectory[p], conditioning[p], noise_seeds[p], step) for p in parts]
        )

    def _denoising_errors(
        self, trajectory: Trajectory, conditioning: Conditioning, noise_seeds: Sequence[int], step: int
    ) -> Scores:
        clean = trajectory.samples[-1]
        self._set_up_scheduler(clean, conditioning)
        shape = (len(clean) // len(trajectory), *clean.shape[1:])
        draws = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in noise_seeds]
        sample, target = transitions.noised(self.pipe.scheduler, clean, torch.cat(draws).to(clean), step)
        predicted = self._reach(sample, trajectory.seeds, conditioning, step, self.no_guidance_kwargs).given[
            "model_output"
        ]
        squares: Tensor = (predicted - target).square()
        return squares.reshape(len(trajectory), -1).mean(dim=1)

    def _set_up_scheduler(self, sample: Tensor, conditioning: Conditioning) -> None:
        """Have the loop choose its timesteps, once."""
        if not self._scheduler_is_set_up:
            with contextlib.suppress(LoopReady):
                self._run_pipeline(
                    self._entry(sample, len(conditioning)),
                    conditioning,
                    StopBeforeDenoiser([0] * len(conditioning), plan=None),
                )
            self._scheduler_is_set_up = True

    def _reach(
        self,
        sample: Tensor,
        seeds: Sequence[int],
        conditioning: Conditioning,
        step: int,
        changes: Mapping[str, float],
    ) -> StepReached:
        """The denoiser's call of one denoising step, from a sample in the layout of ``scheduler.step``."""
        plan = TruncationPlan(self.sampling.num_inference_steps, (step,), recompute=False)
        scheduler_state = {"_step_index": step} if hasattr(self.pipe.scheduler, "_step_index") else {}
        state = SamplingState(sample, tuple(seeds), (sample, sample), scheduler_state) if step else None
        try:
            self._run_pipeline(
                self._entry(sample, len(seeds)),
                conditioning,
                PredictionProbe(seeds, plan=plan, resume=state),
                **changes,
            )
        except StepReached as reached:
            return reached
        raise AssertionError("the pipeline ended before the denoising step")

    def _entry(self, sample: Tensor, num_videos: int) -> Tensor:
        """A sample in the layout of ``scheduler.step`` as the pipeline takes its noise."""
        laid_out = _with_frames(sample, num_videos) if sample.ndim == 4 else sample
        return laid_out / getattr(self.pipe.scheduler, "init_noise_sigma", 1.0)  # the loop multiplies

    @contextlib.contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Inside, the model is the pretrained one."""
        with lora.disabled(self.denoisers().values()):
            yield

    def _parts(self, num_videos: int) -> Iterator[slice]:
        size = num_videos if self.batched else 1
        return (slice(start, start + size) for start in range(0, num_videos, size))

    def _run_pipeline(
        self, latents: Tensor, conditioning: Conditioning, hook: LoopHook, **changes: float
    ) -> Latents:
        """Run the pipeline's own loop under a hook; what its decoder would have got, ``batch channels frames h w``.

        ``latents`` are the noise as `pack_latents` lays it out, ``changes`` arguments that differ from `pipeline_kwargs`.
        """
        loop = inspect.unwrap(type(self.pipe).__call__)
        dtype = self._sampling_dtype()  # some loops keep the latents in that of the embeddings
        tensors = {name: cast(column, dtype) for name, column in conditioning.tensors.items()}
        arguments = (
            tensors
            | self.pipeline_kwargs()
            | changes
            | {"generator": hook.generators(_LOOPS_OWN, len(latents))}
        )
        try:
            with hook.install(list(self.denoisers().values()), self.pipe.scheduler, self.pipe.vae):
                loop(self.pipe, latents=latents, **arguments)
        except DecoderReached as reached:
            self._check_steps(hook.index)
            return _with_frames(reached.latents, len(latents))
        finally:
            self.denoiser_calls += hook.denoiser_calls
        raise AssertionError("the pipeline ended without decoding")

    def _check_steps(self, taken: int) -> None:
        if taken != self.sampling.num_inference_steps:
            raise ValueError(
                f"{type(self.pipe.scheduler).__name__} took {taken} denoising steps for sampling.num_inference_steps="
                f"{self.sampling.num_inference_steps}; choose a first-order scheduler"
            )

    def _check_scheduler(self) -> None:
        accepts_eta = "eta" in inspect.signature(self.pipe.scheduler.step).parameters
        if self.sampling.eta and not accepts_eta:
            raise ValueError(
                f"sampling.eta={self.sampling.eta} means nothing to {type(self.pipe.scheduler).__name__}; set it to 0"
            )

    def _sampling_dtype(self) -> torch.dtype:
        return torch.promote_types(frozen_dtype(self.denoiser), torch.float32)

    def add_adapter(self, adapter: AdapterConfig, seed: int) -> None:
        """Add a trainable adapter that changes nothing yet, in the place of an earlier one."""
        for place, denoiser in enumerate(self.denoisers().values()):
            lora.inject(denoiser, adapter, adapter.target_modules or self.adapter_targets, seed + place)

    def adapter_parameters(self) -> list[nn.Parameter]:
        """The trainable parameters, in an order that never changes."""
        return [
            parameter for denoiser in self.denoisers().values() for parameter in lora.parameters(denoiser)
        ]

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter: in diffusers' format where its loader works, else in peft's; a second denoiser's beneath."""
        for (name, denoiser), place in zip(
            self.denoisers().items(), lora.folders(folder, self.denoisers()), strict=True
        ):
            if self.stock_loader:
                lora.save_for_diffusers(denoiser, place, type(self.pipe), name.removesuffix("_2"))
            else:
                lora.save(denoiser, place)

    def load_adapter(self, folder: Path) -> None:
        """Read an adapter that `save_adapter` wrote."""
        for denoiser, place in zip(
            self.denoisers().values(), lora.folders(folder, self.denoisers()), strict=True
        ):
            lora.load(denoiser, place)

    def save_merged(self, folder: Path) -> list[Path]:
        """Fold the adapter into the denoisers and write each in the library's format, in a folder of its name.

        Raises:
            ValueError: a denoiser is not the library's.
        """
        places = []
        for name, denoiser in self.denoisers().items():
            if not isinstance(denoiser, ModelMixin):
                raise ValueError(
                    f"{type(denoiser).__module__} is no network of diffusers and cannot be saved as one; keep the adapter"
                )
            export.merge(denoiser)
            denoiser.save_pretrained(folder / name)
            places.append(folder / name)
        return places

    def modules(self) -> list[nn.Module]:
        """All that occupies memory."""
        return [module for module in self.pipe.components.values() if isinstance(module, nn.Module)]

    def free_text_encoders(self) -> None:
        """Drop the text encoders; `encode` cannot be called afterwards. Image encoders stay: the loop calls them."""
        for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
            if getattr(self.pipe, name, None) is not None:
                setattr(self.pipe, name, None)


def _with_frames(latents: Tensor, batch: int) -> Latents:
    """Framewise autoencoders get ``batch·frames channels h w``; everyone else already has a frame dimension."""
    return latents if latents.ndim == 5 else latents.unflatten(0, (batch, -1)).transpose(1, 2)
