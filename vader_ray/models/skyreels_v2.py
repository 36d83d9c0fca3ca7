"""SkyReels-V2 (``Skywork/SkyReels-V2-T2V-14B-540P-Diffusers``, ``-I2V-``): videos from text, or an image."""

from __future__ import annotations

from typing import Any

from vader_ray.config import SamplingConfig
from vader_ray.models.base import VideoModel
from vader_ray.models.core.decoders import DecoderOptions


class SkyReelsV2Model(VideoModel):
    """Wan's architecture with other weights: flow-predicting transformer, umT5 text encoder.

    The image-to-video pipeline takes one image for all its videos, so videos are sampled one by one there.
    """

    pipeline_classes = ("SkyReelsV2Pipeline", "SkyReelsV2ImageToVideoPipeline")
    image_pipeline_classes = ("SkyReelsV2ImageToVideoPipeline",)
    stock_loader = True

    def __init__(self, pipe: Any, sampling: SamplingConfig, decoder_options: DecoderOptions) -> None:
        super().__init__(pipe, sampling, decoder_options)
        self.batched = not self.is_image_to_video
        if pipe.transformer.config.image_dim is not None:
            # diffusers' loader expects an adapter on the projections of the image, too
            self.adapter_targets = (*self.adapter_targets, "add_k_proj", "add_v_proj")
