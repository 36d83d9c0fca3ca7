"""AnimateDiff over Stable Diffusion 1.5: a folder that ``AnimateDiffPipeline.save_pretrained`` wrote.

Base model and motion adapter are two downloads; combine them once::

    motion = MotionAdapter.from_pretrained(MOTION)
    AnimateDiffPipeline.from_pretrained(BASE, motion_adapter=motion).save_pretrained(FOLDER)
"""

from __future__ import annotations

from vader_ray.models.base import VideoModel


class AnimateDiffModel(VideoModel):
    """Noise-predicting image UNet with motion modules; image autoencoder per frame."""

    pipeline_classes = ("AnimateDiffPipeline",)
    denoiser_name = "unet"
    stock_loader = True
