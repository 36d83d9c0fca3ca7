"""AnyFlow (``nvidia/AnyFlow-Wan2.1-T2V-14B-Diffusers``): videos from text in a few steps."""

from __future__ import annotations

from vader_ray.models.base import VideoModel


class AnyFlowModel(VideoModel):
    """Flow maps of Wan: each step predicts the mean velocity to the next noise level, without guidance.

    Four to eight steps make a video, so that all of them can be gradient steps. In the published weights
    guidance is part of the prediction; ``sampling.guidance_scale`` is 1.
    """

    pipeline_classes = ("AnyFlowPipeline",)
    stock_loader = True
    loads_in_comfyui = False
