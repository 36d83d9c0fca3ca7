"""LTX-Video (``Lightricks/LTX-Video`` and its 0.9 successors in diffusers' layout)."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import LTXPipeline
from torch import Tensor

from vader_ray.config import ModelConfig, SamplingConfig
from vader_ray.models.base import PipelineModel
from vader_ray.models.core.decoders import WholeClip
from vader_ray.models.core.loading import load_pipeline
from vader_ray.types import Noise

_DECODE_TIMESTEP, _DECODE_NOISE = 0.05, 0.025
"""The library's values for decoders that also denoise (0.9.1 and later); their noise is a function of the video's seed."""


class Model(PipelineModel):
    """Flow-predicting transformer over packed tokens, T5 text encoder, decoder of the whole clip."""

    stock_loader = True
    embeddings = (
        "prompt_embeds",
        "prompt_attention_mask",
        "negative_prompt_embeds",
        "negative_prompt_attention_mask",
    )

    @classmethod
    def load(
        cls, model: ModelConfig, sampling: SamplingConfig, *, chunk_size: int, device: torch.device
    ) -> Model:
        """The pretrained pipeline on a device; ``chunk_size`` is not used, the clip is decoded at once."""
        pipe = load_pipeline(LTXPipeline, model, sampling, device)
        timestep = [torch.tensor([_DECODE_TIMESTEP])] if pipe.vae.config.timestep_conditioning else []
        return cls(pipe, sampling, WholeClip(pipe.vae, pipe.vae_temporal_compression_ratio, *timestep))

    def vae_scale_factors(self) -> tuple[int, int]:
        return self.pipe.vae_temporal_compression_ratio, self.pipe.vae_spatial_compression_ratio

    def pack_latents(self, noise: Noise) -> Tensor:
        packed: Tensor = self.pipe._pack_latents(
            noise, self.pipe.transformer_spatial_patch_size, self.pipe.transformer_temporal_patch_size
        )
        return packed

    def pipeline_kwargs(self) -> dict[str, Any]:
        return super().pipeline_kwargs() | {
            "decode_timestep": _DECODE_TIMESTEP,
            "decode_noise_scale": _DECODE_NOISE,
        }
