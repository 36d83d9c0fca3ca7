"""HunyuanVideo (``hunyuanvideo-community/HunyuanVideo``): videos from text."""

from __future__ import annotations

from types import MappingProxyType

from vader_ray.models.base import VideoModel


class HunyuanVideoModel(VideoModel):
    """Flow-predicting transformer, Llama and CLIP text encoders.

    Guidance is an input of the denoiser: one branch, no negative prompt.
    """

    pipeline_classes = ("HunyuanVideoPipeline",)
    stock_loader = True
    no_guidance_kwargs = MappingProxyType[str, float](
        {}
    )  # the denoiser was trained with guidance as a condition
    embeddings = ("prompt_embeds", "pooled_prompt_embeds", "prompt_attention_mask")
