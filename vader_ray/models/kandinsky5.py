"""Kandinsky 5 (``kandinskylab/Kandinsky-5.0-T2V-Lite-sft-5s-Diffusers``): videos from text, or an image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vader_ray.config import SamplingConfig
from vader_ray.errors import UserError
from vader_ray.models.base import VideoModel
from vader_ray.models.core.conditioning import TextEncoding
from vader_ray.models.core.decoders import DecoderOptions
from vader_ray.models.core.loop_hooks import OUTSIDE_STEPS, LoopHook
from vader_ray.types import Noise

NUM_ADAPTED = 4
"""Latent frames at the start of a video from an image whose mean and deviation are changed after sampling."""


class Kandinsky5Model(VideoModel):
    """Flow-predicting transformer, Qwen 2.5 VL and CLIP text encoders, HunyuanVideo's autoencoder.

    Prompts have as many tokens as they need, so videos are sampled one by one.
    """

    pipeline_classes = ("Kandinsky5T2VPipeline", "Kandinsky5I2VPipeline")
    image_pipeline_classes = ("Kandinsky5I2VPipeline",)
    stock_loader = True
    loads_in_comfyui = False
    batched = False
    splits_guidance = False
    continues_frames = False
    text_encoding = TextEncoding(negative_apart=True, lengths_differ=True)
    embeddings = ("prompt_embeds_qwen", "prompt_embeds_clip", "prompt_cu_seqlens")
    adapter_targets = (
        "to_query",
        "to_key",
        "to_value",
        "self_attention.out_layer",
        "cross_attention.out_layer",
    )

    def __init__(self, pipe: Any, sampling: SamplingConfig, decoder_options: DecoderOptions) -> None:
        super().__init__(pipe, sampling, decoder_options)
        if self.is_image_to_video:
            pipe.normalize_first_frame = self._normalize_first_frames

    def latent_shape(self) -> tuple[int, int, int, int]:
        """Return the shape of one video's noise.

        Raises:
            UserError: the pipeline would round the number of frames, or has none to adapt the first ones to.
        """
        shape = super().latent_shape()
        if self.is_image_to_video and shape[1] <= NUM_ADAPTED:
            smallest = NUM_ADAPTED * self.vae_scale_factors()[0] + 1
            raise UserError(
                f"sampling.num_frames={self.sampling.num_frames}: this model adapts the first {NUM_ADAPTED} "
                f"latent frames to those after them; choose at least {smallest}"
            )
        return shape

    def to_scheduler_layout(self, latents: Noise) -> Tensor:
        return latents.movedim(1, -1)

    def pack_latents(self, noise: Noise) -> Tensor:
        """Return noise as ``batch frames height width channels``, which the loop changes in place.

        Weights that also take images have further channels for one and its mask; they are 0.
        """
        latents = noise.movedim(1, -1).clone()
        if not self.pipe.transformer.visual_cond:
            return latents
        return torch.cat([latents, torch.zeros_like(latents), torch.zeros_like(latents[..., :1])], dim=-1)

    def latents_with_images(self, latents: Tensor, images: Any, hook: LoopHook) -> Tensor:
        """Return latents with the encoded image as the first latent frame, and its mask."""
        size, (channels, *_) = self.sampling, self.latent_shape()
        started: Tensor = self.pipe.prepare_latents(
            images, len(latents), channels, size.height, size.width, size.num_frames, latents.dtype,
            latents.device, hook.generators(OUTSIDE_STEPS, len(latents)),
        )  # fmt: skip
        started[:, 1:, ..., :channels] = latents[:, 1:, ..., :channels]
        return started

    def _normalize_first_frames(self, latents: Tensor) -> Tensor:
        """Adapt the first latent frames to the five after them, as the pipeline does.

        The pipeline's own function overwrites a tensor that the gradient needs.
        """
        first, rest = latents[:, :NUM_ADAPTED], latents[:, NUM_ADAPTED:]
        return torch.cat([self.pipe.adaptive_mean_std_normalization(first, rest[:, :5]), rest], dim=1)
