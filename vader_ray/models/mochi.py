"""Mochi 1 (``genmo/mochi-1-preview``): videos from text."""

from __future__ import annotations

import torch
from diffusers import MochiPipeline

from vader_ray.config import ModelConfig, SamplingConfig
from vader_ray.models.base import PipelineModel
from vader_ray.models.core.decoders import WholeClip
from vader_ray.models.core.loading import load_pipeline


class Model(PipelineModel):
    """Flow-predicting transformer, T5 text encoder.

    The decoder sees the whole clip: the library's portions repeat the edge frame instead of keeping a cache, and so give
    other pixels.
    """

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
        pipe = load_pipeline(MochiPipeline, model, sampling, device)
        return cls(pipe, sampling, WholeClip(pipe.vae, pipe.vae_temporal_scale_factor))

    def vae_scale_factors(self) -> tuple[int, int]:
        return self.pipe.vae_temporal_scale_factor, self.pipe.vae_spatial_scale_factor
