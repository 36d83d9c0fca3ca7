"""Stable Video Diffusion (``stabilityai/stable-video-diffusion-img2vid``, ``-xt``): videos from images."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import torch
from diffusers import StableVideoDiffusionPipeline
from torch import Tensor

from vader_ray.config import ModelConfig, SamplingConfig
from vader_ray.models.base import PipelineModel
from vader_ray.models.core.decoders import TemporalChunk
from vader_ray.models.core.loading import load_pipeline
from vader_ray.types import Noise


class Model(PipelineModel):
    """Spatio-temporal UNet over an encoded image; texts go to the rewards alone. Adapters are saved in peft's format.

    ``sampling.guidance_scale`` is that of the last frame; it rises from 1 at the first, as in the pipeline. Frame rate,
    motion bucket and image noise are the pipeline's defaults (7, 127, 0.02).
    """

    denoiser_name = "unet"
    embeddings = ()
    no_guidance_kwargs = MappingProxyType({"max_guidance_scale": 1.0})
    is_image_to_video = True

    @classmethod
    def load(
        cls, model: ModelConfig, sampling: SamplingConfig, *, chunk_size: int, device: torch.device
    ) -> Model:
        """The pretrained pipeline on a device; ``chunk_size`` is not used, as portions change this decoder's pixels."""
        pipe = load_pipeline(StableVideoDiffusionPipeline, model, sampling, device)
        return cls(
            pipe, sampling, TemporalChunk(pipe.vae, model.temporal_decoder_frames or sampling.num_frames)
        )

    def vae_scale_factors(self) -> tuple[int, int]:
        return 1, self.pipe.vae_scale_factor

    def latent_channels(self) -> int:
        return super().latent_channels() // 2

    def pack_latents(self, noise: Noise) -> Tensor:
        return noise.transpose(1, 2)

    def pipeline_kwargs(self) -> dict[str, Any]:
        arguments = super().pipeline_kwargs()
        scale = arguments.pop("guidance_scale")
        return arguments | {
            "max_guidance_scale": scale,
            "decode_chunk_size": 2**31,
        }  # the hook takes all latents at once
