"""AnimateDiff over Stable Diffusion 1.5: an image model with ``model.motion_adapter``, or both in one folder.

One folder is what ``AnimateDiffPipeline.save_pretrained`` wrote; then ``model.motion_adapter`` stays empty.
"""

from __future__ import annotations

from vader_ray.models.base import CLIP_ATTENTION, VideoModel


class AnimateDiffModel(VideoModel):
    """Noise-predicting image UNet with motion modules; image autoencoder per frame."""

    pipeline_classes = ("AnimateDiffPipeline",)
    denoiser_name = "unet"
    text_adapter_targets = CLIP_ATTENTION
    stock_loader = True
