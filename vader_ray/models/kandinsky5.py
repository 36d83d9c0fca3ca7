"""Kandinsky 5 (``kandinskylab/Kandinsky-5.0-T2V-Lite-sft-5s-Diffusers``): videos from text."""

from __future__ import annotations

import torch
from torch import Tensor

from vader_ray.models.base import VideoModel
from vader_ray.models.core.conditioning import TextEncoding
from vader_ray.types import Noise


class Kandinsky5Model(VideoModel):
    """Flow-predicting transformer, Qwen 2.5 VL and CLIP text encoders, HunyuanVideo's autoencoder.

    Prompts have as many tokens as they need, so videos are sampled one by one.
    """

    pipeline_classes = ("Kandinsky5T2VPipeline",)
    stock_loader = True
    loads_in_comfyui = False
    batched = False
    text_encoding = TextEncoding(negative_apart=True, lengths_differ=True)
    embeddings = ("prompt_embeds_qwen", "prompt_embeds_clip", "prompt_cu_seqlens")
    adapter_targets = ("to_query", "to_key", "to_value", "attention.out_layer")

    def to_scheduler_layout(self, latents: Noise) -> Tensor:
        return latents.movedim(1, -1)

    def pack_latents(self, noise: Noise) -> Tensor:
        """Return noise as ``batch frames height width channels``, which the loop changes in place.

        Weights that also take images have further channels for one and its mask; they are 0.
        """
        latents = noise.movedim(1, -1).clone()
        if not self.pipe.transformer.visual_cond:
            return latents
        return torch.cat([latents, torch.zeros_like(latents), torch.zeros_like(latents[..., :1])], dim=-1)
