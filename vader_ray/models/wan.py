"""Wan 2.1 and 2.2: videos from text, or from an image.

For example ``Wan-AI/Wan2.1-T2V-1.3B-Diffusers``, ``Wan2.2-T2V-A14B-Diffusers`` and
``Wan2.2-TI2V-5B-Diffusers``.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

from torch import nn

from vader_ray.config import ModelConfig, SamplingConfig, locate
from vader_ray.models.base import VideoModel
from vader_ray.models.core.decoders import DecoderOptions
from vader_ray.models.core.loading import components_of, published_scheduler, read_index
from vader_ray.models.core.sampling import class_names


class WanModel(VideoModel):
    """Flow-predicting transformer, umT5 text encoder, causal autoencoder.

    Wan 2.2 A14B has two transformers, one for the noisy steps and one for the others.

    The image-to-video pipeline takes one image for all its videos, and VACE one generator of noise, so videos
    are sampled one by one there. VACE gets no control: no video, mask or reference image.
    Adapters are saved in diffusers' format; ``load_lora_weights(FOLDER / "transformer_2",
    load_into_transformer_2=True)`` loads that of the second transformer.
    """

    pipeline_classes: ClassVar[tuple[str, ...]] = (
        "WanPipeline",
        "WanImageToVideoPipeline",
        "WanVACEPipeline",
    )
    image_pipeline_classes = ("WanImageToVideoPipeline",)
    stock_loader = True
    splits_tokens = True
    takes_one_image = True

    def __init__(self, pipe: Any, sampling: SamplingConfig, decoder_options: DecoderOptions) -> None:
        super().__init__(pipe, sampling, decoder_options)
        if "WanVACEPipeline" in class_names(pipe):
            self.batched = False
        if pipe.transformer is not None and pipe.transformer.config.image_dim is not None:
            # diffusers' loader expects an adapter on the projections of the image, too
            self.adapter_targets = (*self.adapter_targets, "add_k_proj", "add_v_proj")

    @classmethod
    def denoisers_of_steps(cls, model: ModelConfig, sampling: SamplingConfig) -> list[str]:
        source = locate(model.weights)
        boundary = read_index(source).get("boundary_ratio")
        if boundary is None or "transformer_2" not in components_of(source):
            return super().denoisers_of_steps(model, sampling)
        return _by_boundary(boundary, published_scheduler(source, sampling))

    def denoisers_of_own_steps(self) -> list[str]:
        boundary = self.pipe.config.get("boundary_ratio")
        if boundary is None or len(self.denoisers()) == 1:
            return super().denoisers_of_own_steps()
        scheduler = copy.deepcopy(self.pipe.scheduler)
        scheduler.set_timesteps(self.sampling.num_inference_steps)
        return _by_boundary(boundary, scheduler)

    def denoisers(self) -> dict[str, nn.Module]:
        found = {name: getattr(self.pipe, name, None) for name in ("transformer", "transformer_2")}
        return {name: denoiser for name, denoiser in found.items() if denoiser is not None}


def _by_boundary(boundary: float, scheduler: Any) -> list[str]:
    """Return the denoiser of each timestep of a scheduler, as in the loop of the pipeline."""
    limit = boundary * scheduler.config.num_train_timesteps
    return ["transformer" if step >= limit else "transformer_2" for step in scheduler.timesteps]
