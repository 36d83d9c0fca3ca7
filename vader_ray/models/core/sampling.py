"""Sampling through a diffusers pipeline's own loop, with gradient in the last denoising steps.

The pipeline's own output without gradient is the oracle: `SamplingPipeline.sample` gives its latents bit for
bit in float32. The gradient is computed in two stages: `SamplingPipeline.sample_prefix` runs the loop without
gradient and stops before the first gradient step, `SamplingPipeline.sample_with_grad` enters the loop again,
skips those steps and records the rest.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vader_ray.config import SamplingConfig
from vader_ray.errors import UserError
from vader_ray.models.adapters.files import TEXT_ENCODERS
from vader_ray.models.adapters.lora import scaled
from vader_ray.models.core import prefix_cache, transitions
from vader_ray.models.core.adapter_strength import AdapterStrengthHook
from vader_ray.models.core.conditioning import Conditioning, TextEncoding, encode_texts, open_images
from vader_ray.models.core.decoder_kinds import decoder_of
from vader_ray.models.core.decoders import ALL_FRAMES, Decoder, DecoderOptions
from vader_ray.models.core.frame_images import blank_pictures, frames_in_processors, frames_of, processed
from vader_ray.models.core.guidance_interval import GuidanceIntervalHook, check_interval
from vader_ray.models.core.loop_hooks import (
    OUTSIDE_STEPS,
    DecoderReached,
    LoopHook,
    PrefixDone,
    cast,
)
from vader_ray.models.core.placement import (
    fixed_execution_device,
    frozen_dtype,
    remember_placement,
    reported_dtype,
)
from vader_ray.models.core.sampling_state import SamplingState
from vader_ray.models.core.sharding import is_sharded
from vader_ray.models.core.step_responses import StepResponses
from vader_ray.models.core.video_workers import VideoWorkers
from vader_ray.types import Images, Latents, Noise, SamplingSchedule, TruncationPlan

_TEXTS = "texts"
"""Column of a conditioning that has prompts which are not encoded yet."""


class SamplingPipeline:
    """A diffusers pipeline that samples videos with gradient; a family overrides only what differs.

    Args:
        pipe: a loaded pipeline of the family. Its networks are frozen and set to eval mode, its progress bar
            is switched off.
        sampling: size of the videos, number of denoising steps, guidance.
        decoder_options: how the autoencoder decodes; without influence on the latents.

    Raises:
        UserError: the scheduler or the denoiser does not support a setting.
    """

    pipeline_classes: ClassVar[tuple[str, ...]] = ()
    """Names of the pipeline classes of the family; in diffusers, unless the family loads its weights
    itself."""
    image_pipeline_classes: ClassVar[tuple[str, ...]] = ()
    """Those that make videos from images."""
    denoiser_name: ClassVar[str] = "transformer"
    """Name of the (first) denoiser in the pipeline."""
    embeddings: ClassVar[tuple[str, ...]] = ("prompt_embeds", "negative_prompt_embeds")
    """Arguments by which the pipeline's call takes the return values of its ``encode_prompt``, in their
    order."""
    text_encoding: ClassVar[TextEncoding] = TextEncoding()
    """Differences of ``encode_prompt`` from that of most pipelines."""
    guidance_argument: ClassVar[str] = "guidance_scale"
    """Argument of the pipeline's call that holds ``sampling.guidance_scale``."""
    frames_argument: ClassVar[str] = "num_frames"
    """Argument of the pipeline's call that holds ``sampling.num_frames``."""
    no_guidance_kwargs: ClassVar[Mapping[str, float]] = MappingProxyType({"guidance_scale": 1.0})
    """Arguments of the pipeline's call that switch guidance off; denoising errors are those of the
    conditional prediction. None if guidance is an input of the denoiser and not a second prediction."""
    batched = True
    """Whether one call of the pipeline can make several videos."""
    images_are_optional: ClassVar[bool] = False
    """Whether a pipeline that makes videos from images makes them from text alone, too."""
    takes_one_image: ClassVar[bool] = False
    """Whether a pipeline that makes videos from images takes one image for all videos of a call; they are
    then sampled one by one."""
    rounds_timesteps: ClassVar[bool] = False
    """Whether the denoiser takes timesteps in its own dtype alone; others take them in any."""
    splits_guidance: ClassVar[bool] = True
    """Whether two workers can compute the two predictions of guidance, if there are two: not with sound, nor
    with latents whose channels come last."""
    splits_tokens: ClassVar[bool] = False
    """Whether the tokens of a video can be divided over workers: diffusers has a plan for the denoiser."""

    def __init__(self, pipe: Any, sampling: SamplingConfig, decoder_options: DecoderOptions) -> None:
        self.pipe = pipe
        self.sampling = sampling
        if self.takes_one_image and self.is_image_to_video:
            self.batched = False
        self.decoder = self.build_decoder(decoder_options)
        self.denoiser_calls = 0
        """Forward passes of the denoiser so far, per video and guidance branch; recomputations are not
        counted."""
        self.recomputes_blocks = False
        """Whether the denoisers recompute each of their blocks in the backward pass."""
        self.video_workers: VideoWorkers | None = None
        """The workers that compute the same videos as this one, if there are others."""
        self.adapted: tuple[str, ...] = ()
        """Names of the networks that have the adapter."""
        self.chosen_networks: tuple[str, ...] | None = None
        """Those that the settings of the adapter name; None if they name none, and every denoiser has it."""
        self._schedule: SamplingSchedule | None = None
        pipe.set_progress_bar_config(disable=True)
        for module in self.modules():
            module.requires_grad_(False).eval()
            remember_placement(module)
        self._check_scheduler()
        denoisers = list(self.denoisers().values())
        prefix_cache.check_cache(sampling.prefix_cache, denoisers, self._deep_blocks())
        check_interval(sampling.guidance_interval, self.denoiser, has_branches=bool(self.no_guidance_kwargs))

    # ---- the family: what pipelines do differently

    @property
    def is_image_to_video(self) -> bool:
        """Whether the pipeline makes videos from images."""
        return bool(class_names(self.pipe) & set(self.image_pipeline_classes))

    @property
    def denoiser(self) -> nn.Module:
        """The network that predicts noise, velocity or flow; the first one if there are several."""
        return next(iter(self.denoisers().values()))

    def denoisers(self) -> dict[str, nn.Module]:
        """Return every denoiser by its name in the pipeline."""
        return {self.denoiser_name: getattr(self.pipe, self.denoiser_name)}

    def adapted_networks(self) -> dict[str, nn.Module]:
        """Return every network that has the adapter by its name in the pipeline: denoisers first."""
        networks = self.denoisers() | self.text_encoders()
        return {name: network for name, network in networks.items() if name in self.adapted}

    @property
    def trains_text(self) -> bool:
        """Whether a text encoder has the adapter: prompts are then encoded anew in each sampling."""
        return any(name in TEXT_ENCODERS for name in self.adapted)

    @staticmethod
    def deep_blocks(denoiser: nn.Module) -> list[nn.Module]:
        """Return the blocks of a UNet below its first level of resolution; none of another denoiser."""
        return prefix_cache.deep_blocks(denoiser)

    def build_decoder(self, options: DecoderOptions) -> Decoder:
        """Return the decoder of the pipeline's autoencoder; by default that of its class."""
        return decoder_of(self.pipe.vae, self.vae_scale_factors()[0], options)

    def vae_scale_factors(self) -> tuple[int, int]:
        """Return the frames per latent frame (the first is one frame) and the pixels per latent pixel."""
        temporal: int = getattr(self.pipe, "vae_scale_factor_temporal", 1)
        spatial: int = getattr(self.pipe, "vae_scale_factor_spatial", None) or self.pipe.vae_scale_factor
        return temporal, spatial

    def latent_channels(self) -> int:
        """Return the number of channels of the latents."""
        config = self.pipe.vae.config
        channels: int = config.z_dim if "z_dim" in config else config.latent_channels
        return channels

    def latent_shape(self) -> tuple[int, int, int, int]:
        """Return channels, frames, height and width of one video's noise.

        Raises:
            UserError: the pipeline would round the number of frames.
        """
        (per_frame, per_pixel), sampling = self.vae_scale_factors(), self.sampling
        frames, rest = divmod(sampling.num_frames - 1, per_frame)
        if rest:
            lower, upper = frames * per_frame + 1, (frames + 1) * per_frame + 1
            raise UserError(
                f"sampling.num_frames={sampling.num_frames} is not a number of frames that this model can "
                f"make; choose {lower} or {upper}"
            )
        return self.latent_channels(), frames + 1, sampling.height // per_pixel, sampling.width // per_pixel

    def pipeline_kwargs(self) -> dict[str, Any]:
        """Return the arguments of the pipeline's call that are settings and not tensors."""
        sampling = self.sampling
        settings = {
            self.frames_argument: sampling.num_frames,
            "height": sampling.height,
            "width": sampling.width,
            "num_inference_steps": sampling.num_inference_steps,
            self.guidance_argument: sampling.guidance_scale,
            "eta": sampling.eta,
            "decode_chunk_size": ALL_FRAMES,
            "prompt": None,  # prompts are encoded already
            "negative_prompt": None,
        }
        accepted = inspect.signature(type(self.pipe).__call__).parameters
        return {name: value for name, value in settings.items() if name in accepted}

    def pack_latents(self, noise: Noise) -> Tensor:
        """Return noise in the layout of the pipeline's argument ``latents``."""
        return noise

    def encoder_pixels(self, processor: Any, frames: Images) -> Tensor:
        """Return the input of the image encoder; by default what its processor does with pictures."""
        return processed(processor, frames)

    def latents_with_images(self, latents: Tensor, images: Any, hook: LoopHook) -> Tensor:
        """Return initial latents with the given images.

        For pipelines that put images into the noise that they draw, and not into latents that they are given.

        Args:
            latents: result of `pack_latents`.
            images: the image of each video; one image if videos are sampled one by one.
            hook: of the pass through the loop, which has the generators.
        """
        return latents

    # ---- sampling

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], images: Sequence[Path] | None = None) -> Conditioning:
        """Encode prompts, and open the first-frame images of image-to-video models.

        If a text encoder has the adapter, the prompts are kept as texts, and each sampling encodes them.

        Args:
            prompts: one text for each video.
            images: one file for each video, or None.

        Raises:
            UserError: the model makes videos from images alone and there are none.
        """
        columns, sampling = dict[str, Tensor | list[Any]](), self.sampling
        from_text = not self.is_image_to_video or (self.images_are_optional and images is None)
        opened = [] if from_text else open_images(sampling, images)
        if self.embeddings:
            columns |= {_TEXTS: list(prompts)} if self.trains_text else self._embed(prompts, opened)
        if not from_text:
            columns["image"] = opened
        return Conditioning(columns)

    def _embed(self, prompts: Sequence[str], images: Sequence[Any] = ()) -> dict[str, Tensor | list[Any]]:
        """Return the prompt embeddings; with gradients enabled, differentiable in a trained text encoder."""
        return encode_texts(self.pipe, self.sampling, self.embeddings, self.text_encoding, prompts, images)

    def noise(self, seeds: Sequence[int]) -> Noise:
        """Draw the initial noise of each video from its seed, on the CPU, so that every device agrees."""
        shape = self.latent_shape()
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(noise).to(self.pipe.device, self._sampling_dtype())

    @torch.no_grad()
    def sample(
        self,
        conditioning: Conditioning,
        seeds: Sequence[int],
        adapter_strengths: Sequence[float] | None = None,
    ) -> Latents:
        """Sample without gradient, from the first denoising step to the last.

        Args:
            conditioning: prompts and images, encoded, one for each video.
            seeds: seed of each video's initial noise.
            adapter_strengths: factor of the adapter's update in each denoising step; by default 1 in all. A
                text encoder, which is called once, has the adapter only with the same factor in all steps.
        """
        parts = self._parts(len(seeds))
        with ExitStack() as stack:
            if adapter_strengths is not None and self.trains_text:
                assert len(set(adapter_strengths)) == 1, "refused before"
                for name, network in self.adapted_networks().items():
                    if name in TEXT_ENCODERS:
                        stack.enter_context(scaled(network, adapter_strengths[0]))
            return torch.cat(
                [self._sample(conditioning[part], seeds[part], adapter_strengths) for part in parts]
            )

    @torch.no_grad()
    def sample_prefix(
        self, conditioning: Conditioning, plan: TruncationPlan, seeds: Sequence[int]
    ) -> SamplingState:
        """Sample without gradient up to the plan's first gradient step."""
        parts = self._parts(len(seeds))
        return SamplingState.join(
            [self._sample_prefix(conditioning[part], plan, seeds[part]) for part in parts]
        )

    def sample_with_grad(
        self, state: SamplingState, conditioning: Conditioning, plan: TruncationPlan
    ) -> Latents:
        """Sample the remaining denoising steps; the latents are differentiable in the adapter.

        They are so in first frames that are tensors, too. Within ``torch.no_grad`` there is no graph.
        """
        parts = self._parts(len(state))
        return torch.cat([self._sample_with_grad(state[part], conditioning[part], plan) for part in parts])

    @torch.no_grad()
    def sampling_schedule(self, conditioning: Conditioning) -> SamplingSchedule:
        """Return the scheduler's coefficients and noise levels; calls no denoiser.

        Raises:
            UserError: the scheduler's steps are not linear in the predictions.
        """
        if self._schedule is None:
            hook = StepResponses(self.sampling.num_inference_steps)
            self._run_pipeline(self.pack_latents(self.noise([0])), conditioning[:1], hook)
            levels = [transitions.noise_share(self.pipe.scheduler, step) for step in range(hook.index)]
            self._schedule = SamplingSchedule(hook.coefficients(), tuple(levels))
        return self._schedule

    def _sample(
        self, conditioning: Conditioning, seeds: Sequence[int], adapter_strengths: Sequence[float] | None
    ) -> Latents:
        hook = (
            LoopHook(seeds, plan=None)
            if adapter_strengths is None
            else AdapterStrengthHook(seeds, adapter_strengths)
        )
        return self._run_pipeline(self.pack_latents(self.noise(seeds)), conditioning, hook)

    def _sample_prefix(
        self, conditioning: Conditioning, plan: TruncationPlan, seeds: Sequence[int]
    ) -> SamplingState:
        noise, first = self.noise(seeds), plan.grad_steps[0]
        if first == 0:
            return SamplingState(noise, tuple(seeds))
        hook = GuidanceIntervalHook(seeds, stop_before=first, guided_steps=self.sampling.guided_steps())
        denoisers = list(self.denoisers().values())
        try:
            with prefix_cache.cached(self.sampling.prefix_cache, denoisers, self._deep_blocks()):
                self._run_pipeline(self.pack_latents(noise), conditioning, hook)
        except PrefixDone:
            return SamplingState(noise, tuple(seeds), hook.schedulers)
        raise AssertionError("the pipeline ended before the first gradient step")

    def _deep_blocks(self) -> list[nn.Module]:
        return [block for denoiser in self.denoisers().values() for block in self.deep_blocks(denoiser)]

    def _sample_with_grad(
        self, state: SamplingState, conditioning: Conditioning, plan: TruncationPlan
    ) -> Latents:
        resume = state if state.schedulers else None
        return self._run_with_grad(state, conditioning, LoopHook(state.seeds, plan=plan, resume=resume))

    def _run_with_grad(self, state: SamplingState, conditioning: Conditioning, hook: LoopHook) -> Latents:
        return hook.weighted(self._run_pipeline(self.pack_latents(state.noise), conditioning, hook))

    def num_loops(self, num_videos: int) -> int:
        """Return the number of passes through the pipeline's loop in which some videos are sampled."""
        return len(list(self._parts(num_videos)))

    def _parts(self, num_videos: int) -> Iterator[slice]:
        """Return the videos of each call of the pipeline."""
        size = num_videos if self.batched else 1
        return (slice(start, start + size) for start in range(0, num_videos, size))

    def _run_pipeline(
        self, latents: Tensor, conditioning: Conditioning, hook: LoopHook, **changes: float
    ) -> Latents:
        """Run the pipeline's own loop under a hook; returns the input of its decoder.

        Args:
            latents: noise in the layout of `pack_latents`.
            conditioning: of the same videos.
            hook: what the loop does in each denoising step.
            changes: arguments of the pipeline's call that differ from `pipeline_kwargs`.
        """
        loop = inspect.unwrap(type(self.pipe).__call__)
        dtype = self._sampling_dtype()  # some loops keep the latents in the dtype of the embeddings
        columns, frames = dict(conditioning.tensors), None
        if _TEXTS in columns:
            columns |= self._embed(list(columns.pop(_TEXTS)))
        if "image" in columns and (frames := frames_of(columns["image"])) is not None:
            columns["image"] = blank_pictures(frames)
        if not self.batched:
            columns = {
                name: column[0] if isinstance(column, list) else column for name, column in columns.items()
            }
        arguments: dict[str, Any] = {name: cast(column, dtype) for name, column in columns.items()}
        arguments |= self.pipeline_kwargs() | changes
        generators = hook.generators(OUTSIDE_STEPS, len(latents))
        arguments["generator"] = generators if self.batched else generators[0]
        denoisers = list(self.denoisers().values())
        try:
            with ExitStack() as stack:
                hooked = hook.install(
                    denoisers,
                    self.pipe.scheduler,
                    self.pipe.vae,
                    self.video_workers,
                    in_blocks=self.recomputes_blocks,
                    round_timesteps=self.rounds_timesteps,
                )
                stack.enter_context(hooked)
                if frames is not None:
                    stack.enter_context(frames_in_processors(self.pipe, frames, self.encoder_pixels))
                stack.enter_context(fixed_execution_device(self.pipe, self.denoiser))
                for denoiser in denoisers:
                    stack.enter_context(reported_dtype(denoiser, dtype))
                if "image" in columns:
                    latents = self.latents_with_images(latents, columns["image"], hook)
                loop(self.pipe, latents=latents, **arguments)
        except DecoderReached as reached:
            self._check_num_steps(hook.index)
            return with_frame_dimension(reached.latents, len(latents))
        finally:
            self.denoiser_calls += hook.denoiser_calls
        raise AssertionError("the pipeline ended without decoding")

    def _sampling_dtype(self) -> torch.dtype:
        """Return the dtype of latents between denoiser calls: float32, or float64 with a float64 denoiser."""
        return torch.promote_types(frozen_dtype(self.denoiser), torch.float32)

    # ---- checks and memory

    def _check_num_steps(self, taken: int) -> None:
        if taken != self.sampling.num_inference_steps:
            raise UserError(
                f"{type(self.pipe.scheduler).__name__} took {taken} denoising steps for "
                f"sampling.num_inference_steps={self.sampling.num_inference_steps}; choose a first-order "
                "scheduler"
            )

    def _check_scheduler(self) -> None:
        accepts_eta = "eta" in inspect.signature(self.pipe.scheduler.step).parameters
        if self.sampling.eta and not accepts_eta:
            raise UserError(
                f"sampling.eta={self.sampling.eta} has no effect on {type(self.pipe.scheduler).__name__}; "
                "set it to 0"
            )

    def modules(self) -> list[nn.Module]:
        """Return every network of the pipeline."""
        return [module for module in self.pipe.components.values() if isinstance(module, nn.Module)]

    def free_text_encoders(self) -> None:
        """Release the text encoders, unless one has the adapter; `encode` fails afterwards.

        Image encoders stay, as the loop calls them.
        """
        if self.trains_text:
            return
        encoders = self.text_encoders()
        for name in encoders:
            setattr(self.pipe, name, None)
        if any(is_sharded(encoders.pop(name)) for name in list(encoders)):
            gc.collect()  # a sharded network refers to itself

    def text_encoders(self) -> dict[str, nn.Module]:
        """Return the text encoders by their names in the pipeline, until they are freed."""
        found = {name: getattr(self.pipe, name, None) for name in TEXT_ENCODERS}
        return {name: encoder for name, encoder in found.items() if encoder is not None}


def class_names(pipe: Any) -> set[str]:
    """Return the names of a pipeline's class and its base classes."""
    return {kind.__name__ for kind in type(pipe).__mro__}


def with_frame_dimension(latents: Tensor, batch: int) -> Latents:
    """Return ``batch channels frames h w`` of latents that may be ``batch·frames channels h w``."""
    return latents if latents.ndim == 5 else latents.unflatten(0, (batch, -1)).transpose(1, 2)
