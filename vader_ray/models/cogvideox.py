"""CogVideoX and 1.5 (``zai-org/CogVideoX-2b``, ``-5b``, ``-5b-I2V``): videos from text, or from an image."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vader_ray.errors import UserError
from vader_ray.models.base import VideoModel
from vader_ray.models.core.decoders import CausalStream, DecoderOptions
from vader_ray.types import Latents, Noise


class CogVideoXStream(CausalStream):
    """CogVideoX's decoder in chunks of two latent frames, as in the library.

    The first chunk has three latent frames if their number is odd.
    """

    def latent_sizes(self, num_latent_frames: int) -> list[tuple[int, int]]:
        size, ratio = self.vae.num_latent_frames_batch_size, self.vae.config.temporal_compression_ratio
        first = size + num_latent_frames % size if num_latent_frames >= size else num_latent_frames
        sizes = [first] + [size] * ((num_latent_frames - first) // size)
        return [(n, (n - 1) * ratio + 1 if n % 2 else n * ratio) for n in sizes]

    def decode_chunk(self, latents: Latents, cache: Any) -> tuple[Tensor, Any]:
        if self.vae.post_quant_conv is not None:
            latents = self.vae.post_quant_conv(latents)
        decoded: tuple[Tensor, Any] = self.vae.decoder(latents, conv_cache=cache)
        return decoded


class CogVideoXModel(VideoModel):
    """Velocity-predicting transformer, T5 text encoder, causal autoencoder."""

    pipeline_classes = ("CogVideoXPipeline", "CogVideoXImageToVideoPipeline")
    image_pipeline_classes = ("CogVideoXImageToVideoPipeline",)
    stock_loader = True

    def build_decoder(self, options: DecoderOptions) -> CogVideoXStream:
        return CogVideoXStream(self.pipe.vae, offload_cache=options.offload_cache)

    def latent_shape(self) -> tuple[int, int, int, int]:
        """Return the shape of one video's noise; version 1.5 pads the latent frames to whole patches.

        The pipeline removes the padding before it decodes.

        Raises:
            UserError: the decoder would give another number of frames.
        """
        channels, frames, height, width = super().latent_shape()
        if frames > 1 and frames % 2 == 0:
            ratio = self.vae_scale_factors()[0]
            raise UserError(
                f"sampling.num_frames={self.sampling.num_frames} makes {frames} latent frames, of which "
                f"this decoder makes {frames * ratio} frames; choose a multiple of {2 * ratio} plus 1"
            )
        patch = self.pipe.transformer.config.patch_size_t or 1
        return channels, -(-frames // patch) * patch, height, width

    def pack_latents(self, noise: Noise) -> Tensor:
        return noise.transpose(1, 2)
