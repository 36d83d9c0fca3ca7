"""HunyuanVideo (``hunyuanvideo-community/HunyuanVideo``): videos from text."""

from __future__ import annotations

from types import MappingProxyType

from vader_ray.models.base import VideoModel
from vader_ray.models.core.decoders import DecoderOptions, WholeClip


class HunyuanVideoModel(VideoModel):
    """Flow-predicting transformer, Llama and CLIP text encoders; the clip is decoded at once.

    Guidance is an input of the denoiser: one branch, no negative prompt.
    """

    pipeline_classes = ("HunyuanVideoPipeline",)
    stock_loader = True
    no_guidance_kwargs = MappingProxyType[str, float](
        {}
    )  # the denoiser was trained with guidance as a condition
    embeddings = ("prompt_embeds", "pooled_prompt_embeds", "prompt_attention_mask")

    def build_decoder(self, options: DecoderOptions) -> WholeClip:
        return WholeClip(self.pipe.vae, self.pipe.vae_scale_factor_temporal)

    def vae_scale_factors(self) -> tuple[int, int]:
        return self.pipe.vae_scale_factor_temporal, self.pipe.vae_scale_factor_spatial
