"""Kandinsky 6 (``kandinskylab/Kandinsky-6.0-Lite-5s-Diffusers``, ``-Pro-5s-``): videos with sound."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from diffusers import PiflowScheduler
from torch import Tensor

from vader_ray.errors import UserError
from vader_ray.models.base import VideoModel
from vader_ray.models.core.conditioning import Conditioning
from vader_ray.models.core.loop_hooks import LoopHook, replace_attribute
from vader_ray.types import Latents, SamplingSchedule

_MASKS = ("prompt_attention_mask", "negative_prompt_attention_mask")
"""Columns of the conditioning that the pipeline's call does not take as arguments."""


class Kandinsky6Model(VideoModel):
    """Flow-predicting transformer of video and sound, Qwen 2.5 VL and CLIP text encoders.

    Videos are made from text, or from text and an image. The autoencoder is HunyuanVideo's; the sound is not
    decoded. Adapters are saved in peft's format.
    """

    pipeline_classes = ("Kandinsky6TI2VAPipeline",)
    image_pipeline_classes = pipeline_classes
    images_are_optional = True
    loads_in_comfyui = False
    splits_guidance = False
    embeddings = (
        "prompt_embeds",
        "pooled_prompt_embeds",
        "prompt_attention_mask",
        "negative_prompt_embeds",
        "negative_pooled_prompt_embeds",
        "negative_prompt_attention_mask",
    )
    adapter_targets = (
        "to_query",
        "to_key",
        "to_value",
        "attn.out_layer",
        "self_attention.out_layer",
        "cross_attention.out_layer",
        "va_cross_attention.out_layer",
        "av_cross_attention.out_layer",
    )

    def _embed(self, prompts: Sequence[str], images: Sequence[Any] = ()) -> dict[str, Tensor | list[Any]]:
        with ExitStack() as undo:
            replace_attribute(undo, self.pipe, "_get_prompt_embeds", self._get_prompt_embeds())
            return super()._embed(prompts, images)

    def _get_prompt_embeds(self) -> Any:
        """Return the pipeline's function, which returns None for the mask of prompts without padding.

        Prompts are encoded in other groups than they are sampled in, so there is a mask for each of them.
        """
        own = self.pipe._get_prompt_embeds

        def get_prompt_embeds(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
            embeds, pooled, mask = own(*args)
            return embeds, pooled, torch.ones_like(embeds[..., 0], dtype=torch.bool) if mask is None else mask

        return get_prompt_embeds

    def _run_pipeline(
        self, latents: Tensor, conditioning: Conditioning, hook: LoopHook, **changes: float
    ) -> Latents:
        columns: dict[str, Any] = dict(conditioning.tensors)
        masks = {name: columns.pop(name) for name in _MASKS if name in columns}
        given = {name: None if mask.all() else mask for name, mask in masks.items()}
        with ExitStack() as undo:
            encode_prompt = functools.partial(self.pipe.encode_prompt, **given)
            replace_attribute(undo, self.pipe, "encode_prompt", encode_prompt)
            return super()._run_pipeline(latents, Conditioning(columns), hook, **changes)

    def sampling_schedule(self, conditioning: Conditioning) -> SamplingSchedule:
        """Return the scheduler's coefficients and noise levels; calls no denoiser.

        Raises:
            UserError: the scheduler integrates several predictions of one denoising step.
        """
        if isinstance(self.pipe.scheduler, PiflowScheduler):
            raise UserError(
                "sampling.truncation: this choice needs one prediction in each denoising step, and "
                f"PiflowScheduler takes {self.pipe.scheduler.n_grid}; choose truncation=last"
            )
        return super().sampling_schedule(conditioning)
