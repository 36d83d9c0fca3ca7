"""HunyuanVideo (``hunyuanvideo-community/HunyuanVideo``): videos from text."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from diffusers import HunyuanVideoPipeline

from vader_ray.config import ModelConfig, SamplingConfig
from vader_ray.models.base import PipelineModel
from vader_ray.models.core.decoders import WholeClip
from vader_ray.models.core.loading import load_pipeline


class Model(PipelineModel):
    """Flow-predicting transformer with guidance as an input (one branch, no negative prompt), Llama and CLIP encoders."""

    stock_loader = True
    no_guidance_kwargs: Mapping[str, float] = MappingProxyType(
        {}
    )  # guidance is a condition that the denoiser knows
    embeddings = ("prompt_embeds", "pooled_prompt_embeds", "prompt_attention_mask")

    @classmethod
    def load(
        cls, model: ModelConfig, sampling: SamplingConfig, *, chunk_size: int, device: torch.device
    ) -> Model:
        """The pretrained pipeline on a device; ``chunk_size`` is not used, the clip is decoded at once."""
        pipe = load_pipeline(HunyuanVideoPipeline, model, sampling, device)
        return cls(pipe, sampling, WholeClip(pipe.vae, pipe.vae_scale_factor_temporal))

    def vae_scale_factors(self) -> tuple[int, int]:
        return self.pipe.vae_scale_factor_temporal, self.pipe.vae_scale_factor_spatial
