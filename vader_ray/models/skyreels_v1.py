"""SkyReels-V1 (``Skywork/SkyReels-V1-Hunyuan-I2V``): videos from an image."""

from __future__ import annotations

from types import MappingProxyType

from vader_ray.models.base import VideoModel
from vader_ray.models.core.conditioning import TextEncoding


class SkyReelsV1Model(VideoModel):
    """HunyuanVideo with an image in further channels, and with guidance by a second prediction."""

    pipeline_classes = ("HunyuanSkyreelsImageToVideoPipeline",)
    image_pipeline_classes = pipeline_classes
    stock_loader = True
    guidance_argument = "true_cfg_scale"
    no_guidance_kwargs = MappingProxyType({"true_cfg_scale": 1.0})
    text_encoding = TextEncoding(negative_apart=True)
    embeddings = ("prompt_embeds", "pooled_prompt_embeds", "prompt_attention_mask")
