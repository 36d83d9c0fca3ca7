"""SANA-Video (``Efficient-Large-Model/SANA-Video_2B_480p_diffusers``): videos from text, or an image."""

from __future__ import annotations

from typing import Any

from vader_ray.models.base import VideoModel


class SanaVideoModel(VideoModel):
    """Flow-predicting transformer with linear attention, Gemma text encoder, Wan's or another autoencoder.

    The image-to-video pipeline takes one image for all its videos, so videos are sampled one by one there.
    """

    pipeline_classes = ("SanaVideoPipeline", "SanaImageToVideoPipeline")
    image_pipeline_classes = ("SanaImageToVideoPipeline",)
    stock_loader = True
    loads_in_comfyui = False
    takes_one_image = True
    frames_argument = "frames"
    embeddings = (
        "prompt_embeds",
        "prompt_attention_mask",
        "negative_prompt_embeds",
        "negative_prompt_attention_mask",
    )

    def pipeline_kwargs(self) -> dict[str, Any]:
        return super().pipeline_kwargs() | {"use_resolution_binning": False}
