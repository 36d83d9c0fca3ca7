"""LTX-Video (``Lightricks/LTX-Video`` and its 0.9 successors in diffusers' layout)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vader_ray.models.base import VideoModel
from vader_ray.models.core.decoders import DecoderOptions, WholeClip
from vader_ray.types import Noise

DECODE_TIMESTEP, DECODE_NOISE_SCALE = 0.05, 0.025
"""Noise level that decoders of 0.9.1 and later remove, and amount of noise added before; the values of the
library's documentation. The noise is a function of the video's seed."""


class LTXModel(VideoModel):
    """Flow-predicting transformer over packed tokens, T5 text encoder; the clip is decoded at once."""

    pipeline_classes = ("LTXPipeline",)
    stock_loader = True
    embeddings = (
        "prompt_embeds",
        "prompt_attention_mask",
        "negative_prompt_embeds",
        "negative_prompt_attention_mask",
    )

    def build_decoder(self, options: DecoderOptions) -> WholeClip:
        vae = self.pipe.vae
        timestep = [torch.tensor([DECODE_TIMESTEP])] if vae.config.timestep_conditioning else []
        return WholeClip(vae, self.pipe.vae_temporal_compression_ratio, *timestep)

    def vae_scale_factors(self) -> tuple[int, int]:
        return self.pipe.vae_temporal_compression_ratio, self.pipe.vae_spatial_compression_ratio

    def pack_latents(self, noise: Noise) -> Tensor:
        packed: Tensor = self.pipe._pack_latents(
            noise, self.pipe.transformer_spatial_patch_size, self.pipe.transformer_temporal_patch_size
        )
        return packed

    def pipeline_kwargs(self) -> dict[str, Any]:
        noise = {"decode_timestep": DECODE_TIMESTEP, "decode_noise_scale": DECODE_NOISE_SCALE}
        return super().pipeline_kwargs() | noise
