"""AnimateDiff over Stable Diffusion 1.5: a folder that ``AnimateDiffPipeline.save_pretrained`` wrote.

Base model and motion adapter are two downloads; put them together once::

    AnimateDiffPipeline.from_pretrained(BASE, motion_adapter=MotionAdapter.from_pretrained(MOTION)).save_pretrained(FOLDER)
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AnimateDiffPipeline

from vader_ray.config import ModelConfig, SamplingConfig
from vader_ray.models.base import PipelineModel
from vader_ray.models.core.decoders import Framewise2D
from vader_ray.models.core.loading import load_pipeline


class Model(PipelineModel):
    """Noise-predicting image UNet with motion modules, image autoencoder per frame."""

    denoiser_name = "unet"
    stock_loader = True

    @classmethod
    def load(
        cls, model: ModelConfig, sampling: SamplingConfig, *, chunk_size: int, device: torch.device
    ) -> Model:
        """The pretrained pipeline on a device."""
        pipe = load_pipeline(AnimateDiffPipeline, model, sampling, device)
        return cls(pipe, sampling, Framewise2D(pipe.vae, chunk_size))

    def vae_scale_factors(self) -> tuple[int, int]:
        return 1, self.pipe.vae_scale_factor

    def pipeline_kwargs(self) -> dict[str, Any]:
        everything = 2**31  # the hook takes all latents at once
        return super().pipeline_kwargs() | {"eta": self.sampling.eta, "decode_chunk_size": everything}
