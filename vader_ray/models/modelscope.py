"""ModelScope text-to-video (``ali-vilab/text-to-video-ms-1.7b``) and other 3D UNets in its layout."""

from __future__ import annotations

from torch import Tensor

from vader_ray.models.base import CLIP_ATTENTION, VideoModel
from vader_ray.types import Noise


class ModelScopeModel(VideoModel):
    """Noise-predicting 3D UNet, CLIP text encoder, image autoencoder per frame.

    Adapters are saved in peft's format.
    """

    pipeline_classes = ("TextToVideoSDPipeline",)
    denoiser_name = "unet"
    text_adapter_targets = CLIP_ATTENTION
    loads_in_comfyui = False

    def to_scheduler_layout(self, latents: Noise) -> Tensor:
        return latents.transpose(1, 2).flatten(0, 1)
