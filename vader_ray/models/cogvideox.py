"""CogVideoX and 1.5 (``THUDM/CogVideoX-2b``, ``-5b``, ``-5b-I2V``): videos from text, or from an image and text."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import CogVideoXImageToVideoPipeline, CogVideoXPipeline
from torch import Tensor

from vader_ray.config import ModelConfig, SamplingConfig
from vader_ray.models.base import PipelineModel
from vader_ray.models.core.decoders import CausalStream
from vader_ray.models.core.loading import load_pipeline, published_class
from vader_ray.types import Latents, Noise


class Stream(CausalStream):
    """Two latent frames at a time, three at first where their number is odd, as the library cuts them."""

    def portions(self, num_latent_frames: int) -> list[tuple[int, int]]:
        size, ratio = self.vae.num_latent_frames_batch_size, self.vae.config.temporal_compression_ratio
        first = size + num_latent_frames % size if num_latent_frames >= size else num_latent_frames
        sizes = [first] + [size] * ((num_latent_frames - first) // size)
        return [(n, (n - 1) * ratio + 1 if n % 2 else n * ratio) for n in sizes]

    def decode_portion(self, latents: Latents, cache: Any) -> tuple[Tensor, Any]:
        if self.vae.post_quant_conv is not None:
            latents = self.vae.post_quant_conv(latents)
        decoded: tuple[Tensor, Any] = self.vae.decoder(latents, conv_cache=cache)
        return decoded


class Model(PipelineModel):
    """Velocity-predicting transformer, T5 text encoder; an image-to-video checkpoint is recognised by its pipeline."""

    stock_loader = True

    @classmethod
    def load(
        cls, model: ModelConfig, sampling: SamplingConfig, *, chunk_size: int, device: torch.device
    ) -> Model:
        """The pretrained pipeline on a device; ``chunk_size`` is not used, the library's portions are part of the result."""
        kind = published_class(model, CogVideoXPipeline, CogVideoXImageToVideoPipeline)
        pipe = load_pipeline(kind, model, sampling, device)
        built = cls(pipe, sampling, Stream(pipe.vae, offload_cache=model.offload_decoder_cache))
        built.is_image_to_video = kind is CogVideoXImageToVideoPipeline
        return built

    def vae_scale_factors(self) -> tuple[int, int]:
        return self.pipe.vae_scale_factor_temporal, self.pipe.vae_scale_factor_spatial

    def latent_shape(self) -> tuple[int, int, int, int]:
        """Version 1.5 pads the latent frames to whole patches; the pipeline drops the padding before it decodes.

        Raises:
            ValueError: the decoder would give another number of frames.
        """
        channels, frames, height, width = super().latent_shape()
        if frames > 1 and frames % 2 == 0:
            raise ValueError(
                f"sampling.num_frames={self.sampling.num_frames} makes {frames} latent frames, of which this decoder makes "
                f"{frames * self.vae_scale_factors()[0]} frames; choose a multiple of {2 * self.vae_scale_factors()[0]} plus 1"
            )
        patch = self.pipe.transformer.config.patch_size_t or 1
        return channels, -(-frames // patch) * patch, height, width

    def latent_channels(self) -> int:
        return super().latent_channels() // (2 if self.is_image_to_video else 1)

    def pack_latents(self, noise: Noise) -> Tensor:
        return noise.transpose(1, 2)

    def pipeline_kwargs(self) -> dict[str, Any]:
        return super().pipeline_kwargs() | {"eta": self.sampling.eta}
