"""Stable Video Diffusion (``stabilityai/stable-video-diffusion-img2vid``, ``-xt``): videos from images."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import torch
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import (
    _resize_with_antialiasing,
)
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from vader_ray.errors import UserError
from vader_ray.models.base import VideoModel
from vader_ray.models.core.decoders import DecoderOptions, TemporalChunk
from vader_ray.types import Images, Noise


class SVDModel(VideoModel):
    """Spatio-temporal UNet conditioned on an image; only rewards see the prompts.

    Adapters are saved in peft's format.

    ``sampling.guidance_scale`` is that of the last frame; the first frame has guidance 1, the frames between
    are interpolated, as in the pipeline. Frame rate, motion bucket and image noise are the pipeline's
    defaults (7, 127, 0.02).
    """

    pipeline_classes = ("StableVideoDiffusionPipeline",)
    image_pipeline_classes = pipeline_classes
    denoiser_name = "unet"
    embeddings = ()
    guidance_argument = "max_guidance_scale"
    no_guidance_kwargs = MappingProxyType({"max_guidance_scale": 1.0})

    def build_decoder(self, options: DecoderOptions) -> TemporalChunk:
        return TemporalChunk(self.pipe.vae, options.temporal_frames or self.sampling.num_frames)

    def pack_latents(self, noise: Noise) -> Tensor:
        return noise.transpose(1, 2)

    def check_clips(self) -> None:
        """Check that the model can continue a video from its last frame, with gradient.

        Raises:
            UserError: the pipeline changes the autoencoder's precision while it encodes an image.
        """
        super().check_clips()
        if self.pipe.vae.dtype == torch.float16 and self.pipe.vae.config.force_upcast:
            raise UserError(
                f"sampling.num_clips={self.sampling.num_clips} encodes images again in the backward pass, "
                "where this pipeline does not change model.decoder_precision=float16 to float32; set it to "
                "float32 or bfloat16"
            )

    def encoder_pixels(self, processor: Any, frames: Images) -> Tensor:
        """Return the input of the image encoder, resized as the pipeline does it instead of the processor."""
        resized = _resize_with_antialiasing(frames * 2 - 1, (224, 224)) / 2 + 0.5
        pixels: Tensor = transforms.normalize(resized, processor.image_mean, processor.image_std)
        return pixels
