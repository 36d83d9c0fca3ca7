"""HunyuanVideo from an image (``hunyuanvideo-community/HunyuanVideo-I2V``)."""

from __future__ import annotations

from typing import Any

from vader_ray.config import SamplingConfig
from vader_ray.errors import UserError
from vader_ray.models.core.conditioning import TextEncoding
from vader_ray.models.core.decoders import DecoderOptions
from vader_ray.models.hunyuan_video import HunyuanVideoModel


class HunyuanVideoI2VModel(HunyuanVideoModel):
    """HunyuanVideo whose text encoder also sees the image, and whose first latent frame is the image's.

    Videos are sampled one by one.

    Raises:
        UserError: the denoiser takes the image in further channels.
    """

    pipeline_classes = ("HunyuanVideoImageToVideoPipeline",)
    image_pipeline_classes = pipeline_classes
    takes_one_image = True
    continues_frames = False
    text_encoding = TextEncoding(
        takes_image=True, arguments={"image_embed_interleave": 4}
    )  # what the loop passes for these weights

    def __init__(self, pipe: Any, sampling: SamplingConfig, decoder_options: DecoderOptions) -> None:
        super().__init__(pipe, sampling, decoder_options)
        if (kind := pipe.transformer.config.image_condition_type) != "token_replace":
            raise UserError(
                f"model.weights: the denoiser's image_condition_type is {kind}, whose pipeline drops decoded "
                "frames; only token_replace is supported: hunyuanvideo-community/HunyuanVideo-I2V"
            )
