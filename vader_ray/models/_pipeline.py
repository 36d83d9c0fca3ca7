"""One adapter that drives any diffusers video pipeline through the pipeline's own loop, with gradient where asked.

The pipeline's own no-gradient output is the oracle: `PipelineModel.sample` gives the same latents bit for bit in float32.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vader_ray.config import AdapterConfig, ModelConfig, SamplingConfig
from vader_ray.models import _adapter
from vader_ray.models._loading import fetch_pipeline
from vader_ray.models._tape import DecoderReached, Midway, PrefixDone, Tape
from vader_ray.types import Codec, Latents, Noise, Plan


@dataclass(frozen=True, slots=True)
class Conditioning:
    """Tensor arguments of a pipeline call, each with one row per video."""

    tensors: dict[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, part: slice | list[int]) -> Conditioning:
        return Conditioning({name: tensor[part] for name, tensor in self.tensors.items()})


class PipelineModel:
    """A `vader_ray.types.VideoModel` over a diffusers pipeline; a family overrides what differs and no more."""

    denoiser_name = "transformer"
    adapter_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")

    def __init__(self, pipe: Any, sampling: SamplingConfig, codec: Codec) -> None:
        self.pipe = pipe
        self.sampling = sampling
        self.codec = codec
        self.denoiser_calls = 0
        pipe.set_progress_bar_config(disable=True)
        for module in self.networks():
            module.requires_grad_(False).eval()
        self._check_scheduler()

    @property
    def denoiser(self) -> nn.Module:
        """The network that predicts noise, velocity or flow."""
        denoiser: nn.Module = getattr(self.pipe, self.denoiser_name)
        return denoiser

    @classmethod
    def fetch(cls, model: ModelConfig) -> Path:
        """The folder of the weights, after their download where they are on the hub."""
        return fetch_pipeline(model)

    def latent_shape(self) -> tuple[int, int, int, int]:
        """Channels, frames, height, width of one video's noise."""
        raise NotImplementedError

    def call_arguments(self) -> dict[str, Any]:
        """Settings of the pipeline call that are not tensors."""
        sampling = self.sampling
        return {
            "num_frames": sampling.num_frames,
            "height": sampling.height,
            "width": sampling.width,
            "num_inference_steps": sampling.num_inference_steps,
            "guidance_scale": sampling.guidance_scale,
        }

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """The conditioning of each video."""
        raise NotImplementedError

    def noise(self, seeds: Sequence[int]) -> Noise:
        """The initial noise of each video, drawn on the CPU from its seed so that every device agrees."""
        shape = self.latent_shape()
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        dtype = torch.promote_types(self._frozen_dtype(), torch.float32)
        return torch.stack(noise).to(self.pipe.device, dtype)

    @torch.no_grad()
    def sample(self, conditioning: Conditioning, seeds: Sequence[int]) -> Latents:
        """Whole sampling without gradient."""
        return self._drive(self.noise(seeds), conditioning, Tape(seeds, plan=None))

    @torch.no_grad()
    def prefix(self, conditioning: Conditioning, plan: Plan, seeds: Sequence[int]) -> Midway:
        """Sampling without gradient up to the first graded denoising step."""
        noise, first = self.noise(seeds), plan.graded[0]
        if first == 0:
            return Midway(noise, tuple(seeds), None, {})
        tape = Tape(seeds, plan=None, stop_before=first)
        try:
            self._drive(noise, conditioning, tape)
        except PrefixDone:
            return Midway(noise, tuple(seeds), tape.sample, tape.scheduler_state)
        raise AssertionError("the pipeline ended before its first graded denoising step")

    def finish(self, midway: Midway, conditioning: Conditioning, plan: Plan) -> Latents:
        """The rest of the sampling, differentiable in the adapter."""
        resume = midway if midway.sample is not None else None
        with torch.enable_grad():
            return self._drive(midway.noise, conditioning, Tape(midway.seeds, plan=plan, resume=resume))

    def _drive(self, noise: Noise, conditioning: Conditioning, tape: Tape) -> Latents:
        """Run the pipeline's own loop under a tape; what its decoder would have got, ``batch channels frames h w``."""
        loop = inspect.unwrap(type(self.pipe).__call__)
        try:
            with tape.attached(self.denoiser, self.pipe.scheduler, self.pipe.vae):
                loop(self.pipe, latents=noise, **conditioning.tensors, **self.call_arguments())
        except DecoderReached as reached:
            self._check_steps(tape.index)
            return _with_frames(reached.latents, len(noise))
        finally:
            self.denoiser_calls += tape.denoiser_calls
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

    def _frozen_dtype(self) -> torch.dtype:
        return next(parameter.dtype for parameter in self.denoiser.parameters() if not parameter.requires_grad)

    def add_adapter(self, adapter: AdapterConfig, seed: int) -> None:
        """Add a trainable adapter that changes nothing yet."""
        _adapter.inject(self.denoiser, adapter, adapter.target_modules or self.adapter_targets, seed)

    def adapter_parameters(self) -> list[nn.Parameter]:
        """The trainable parameters, in an order that never changes."""
        return _adapter.parameters(self.denoiser)

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter in peft's format."""
        _adapter.save(self.denoiser, folder)

    def load_adapter(self, folder: Path) -> None:
        """Read an adapter that `save_adapter` wrote."""
        _adapter.load(self.denoiser, folder)

    def networks(self) -> list[nn.Module]:
        """All that occupies memory."""
        return [module for module in self.pipe.components.values() if isinstance(module, nn.Module)]

    def free_text_encoders(self) -> None:
        """Drop the text encoders; `encode` cannot be called afterwards."""
        for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
            if getattr(self.pipe, name, None) is not None:
                setattr(self.pipe, name, None)


def _with_frames(latents: Tensor, batch: int) -> Latents:
    """Framewise autoencoders get ``batch·frames channels h w``; everyone else already has a frame dimension."""
    return latents if latents.ndim == 5 else latents.unflatten(0, (batch, -1)).transpose(1, 2)
