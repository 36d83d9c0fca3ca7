"""Latte (``maxin-cn/Latte-1``): videos from text."""

from __future__ import annotations

from vader_ray.models.base import VideoModel
from vader_ray.models.core.conditioning import TextEncoding


class LatteModel(VideoModel):
    """Noise-predicting transformer over the frames of an image autoencoder, T5 text encoder.

    Prompts have as many tokens as they need, so videos are sampled one by one. Adapters are saved in peft's
    format.
    """

    pipeline_classes = ("LattePipeline",)
    frames_argument = "video_length"
    loads_in_comfyui = False
    batched = False
    text_encoding = TextEncoding(lengths_differ=True)
