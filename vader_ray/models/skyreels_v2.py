"""SkyReels-V2 (``Skywork/SkyReels-V2-T2V-14B-720P-Diffusers``, ``-I2V-``): videos from text, or an image."""

from __future__ import annotations

from vader_ray.models.wan import WanModel


class SkyReelsV2Model(WanModel):
    """Wan's architecture with other weights: flow-predicting transformer, umT5 text encoder."""

    pipeline_classes = ("SkyReelsV2Pipeline", "SkyReelsV2ImageToVideoPipeline")
    image_pipeline_classes = ("SkyReelsV2ImageToVideoPipeline",)
    splits_tokens = False
