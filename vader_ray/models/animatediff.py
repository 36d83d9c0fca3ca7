"""AnimateDiff over Stable Diffusion 1.5: an image model with ``model.motion_adapter``, or both in one folder.

One folder is what ``AnimateDiffPipeline.save_pretrained`` wrote; then ``model.motion_adapter`` stays empty.
"""

from __future__ import annotations

from typing import Any

from vader_ray.models.base import VideoModel
from vader_ray.models.core.decoders import ALL_FRAMES, DecoderOptions, Framewise2D


class AnimateDiffModel(VideoModel):
    """Noise-predicting image UNet with motion modules; image autoencoder per frame."""

    pipeline_classes = ("AnimateDiffPipeline",)
    denoiser_name = "unet"
    stock_loader = True

    def build_decoder(self, options: DecoderOptions) -> Framewise2D:
        return Framewise2D(self.pipe.vae, options.chunk_size)

    def vae_scale_factors(self) -> tuple[int, int]:
        return 1, self.pipe.vae_scale_factor

    def pipeline_kwargs(self) -> dict[str, Any]:
        return super().pipeline_kwargs() | {"eta": self.sampling.eta, "decode_chunk_size": ALL_FRAMES}
