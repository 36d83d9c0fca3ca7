"""Allegro (``rhymes-ai/Allegro``): videos from text."""

from __future__ import annotations

from vader_ray.models.base import VideoModel


class AllegroModel(VideoModel):
    """Velocity-predicting transformer, T5 text encoder, video autoencoder.

    Adapters are saved in peft's format.
    """

    pipeline_classes = ("AllegroPipeline",)
    loads_in_comfyui = False
    embeddings = (
        "prompt_embeds",
        "prompt_attention_mask",
        "negative_prompt_embeds",
        "negative_prompt_attention_mask",
    )
