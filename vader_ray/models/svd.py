"""Stable Video Diffusion (``stabilityai/stable-video-diffusion-img2vid``, ``-xt``): videos from images."""

from __future__ import annotations

from types import MappingProxyType

from torch import Tensor

from vader_ray.models.base import VideoModel
from vader_ray.models.core.decoders import DecoderOptions, TemporalChunk
from vader_ray.types import Noise


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
