"""Mochi 1 (``genmo/mochi-1-preview``): videos from text."""

from __future__ import annotations

from vader_ray.models.base import VideoModel
from vader_ray.models.core.decoders import DecoderOptions, WholeClip


class MochiModel(VideoModel):
    """Flow-predicting transformer, T5 text encoder; the clip is decoded at once.

    The library can decode in chunks, but repeats the edge frame of a chunk instead of keeping a cache, which
    changes the pixels.
    """

    pipeline_classes = ("MochiPipeline",)
    stock_loader = True
    embeddings = (
        "prompt_embeds",
        "prompt_attention_mask",
        "negative_prompt_embeds",
        "negative_prompt_attention_mask",
    )

    def build_decoder(self, options: DecoderOptions) -> WholeClip:
        return WholeClip(self.pipe.vae, self.pipe.vae_temporal_scale_factor)

    def vae_scale_factors(self) -> tuple[int, int]:
        return self.pipe.vae_temporal_scale_factor, self.pipe.vae_spatial_scale_factor
