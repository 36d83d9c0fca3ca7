"""ModelScope text-to-video (``ali-vilab/text-to-video-ms-1.7b``) and other UNet3D pipelines in its diffusers layout."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import Tensor

from vader_ray.config import ModelConfig, SamplingConfig
from vader_ray.models.base import PipelineModel
from vader_ray.models.core.decoders import Framewise2D
from vader_ray.models.core.loading import load_pipeline
from vader_ray.types import Noise


class Model(PipelineModel):
    """Noise-predicting 3D UNet, CLIP text encoder, image autoencoder per frame. Adapters are saved in peft's format."""

    denoiser_name = "unet"

    @classmethod
    def load(
        cls, model: ModelConfig, sampling: SamplingConfig, *, chunk_size: int, device: torch.device
    ) -> Model:
        """The pretrained pipeline on a device."""
        pipe = load_pipeline(_pipeline_class(), model, sampling, device)
        return cls(pipe, sampling, Framewise2D(pipe.vae, chunk_size))

    def vae_scale_factors(self) -> tuple[int, int]:
        return 1, self.pipe.vae_scale_factor

    def to_scheduler_layout(self, latents: Noise) -> Tensor:
        return latents.transpose(1, 2).flatten(0, 1)

    def pipeline_kwargs(self) -> dict[str, Any]:
        return super().pipeline_kwargs() | {"eta": self.sampling.eta}


def _pipeline_class() -> Any:
    """The library deprecates this pipeline; its UNet stays, and a loop of our own would lose the oracle."""
    try:
        return diffusers.TextToVideoSDPipeline
    except AttributeError:
        raise ValueError(
            f"model.family: diffusers {diffusers.__version__} no longer has TextToVideoSDPipeline; install diffusers==0.42.1"
        ) from None
