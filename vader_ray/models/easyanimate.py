"""EasyAnimate (``alibaba-pai/EasyAnimateV5.1-12b-zh-diffusers``): videos from text."""

from __future__ import annotations

from vader_ray.models.base import VideoModel


class EasyAnimateModel(VideoModel):
    """Flow-predicting transformer, Qwen2-VL text encoder, autoencoder of a whole clip.

    Adapters are saved in peft's format.
    """

    pipeline_classes = ("EasyAnimatePipeline",)
    loads_in_comfyui = False
    embeddings = (
        "prompt_embeds",
        "negative_prompt_embeds",
        "prompt_attention_mask",
        "negative_prompt_attention_mask",
    )

    def vae_scale_factors(self) -> tuple[int, int]:
        return self.pipe.vae_temporal_compression_ratio, self.pipe.vae_spatial_compression_ratio
