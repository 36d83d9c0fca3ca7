"""Cosmos-Predict 2.5 (``nvidia/Cosmos-Predict2.5-2B``): videos from text.

The licence of the weights, NVIDIA's Open Model License, ends when the guardrail of the pipeline is bypassed
or disabled without a similar one. diffusers loads the guardrail with the pipeline, from the package
``cosmos_guardrail``, and does not run without it. It checks every prompt here, too, and every finished video.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vader_ray.errors import RunFailed, UserError
from vader_ray.models.base import VideoModel
from vader_ray.models.core.conditioning import Conditioning
from vader_ray.models.core.decoders import DecoderOptions
from vader_ray.models.core.wan_decoder import WanStream
from vader_ray.types import Frames


class CosmosModel(VideoModel):
    """Flow-predicting transformer, Qwen 2.5 VL text encoder, Wan's autoencoder; no images or videos as input.

    Frames that a reward differentiates are not those of a finished video and not checked.
    """

    pipeline_classes = ("Cosmos2_5_PredictBasePipeline",)
    stock_loader = True
    loads_in_comfyui = False

    def encode(self, prompts: Sequence[str], images: Sequence[Path] | None = None) -> Conditioning:
        """Encode prompts that the guardrail accepts.

        Raises:
            UserError: it refuses a prompt, or was taken out of the pipeline.
        """
        guardrail = self.pipe.safety_checker
        if guardrail is None:
            raise UserError(
                "from_pipeline: the pipeline has no safety_checker, which the NVIDIA Open Model License "
                "demands; load it with the package cosmos_guardrail installed"
            )
        guardrail.to(self.pipe.device)
        for prompt in prompts:
            if not guardrail.check_text_safety(prompt):
                raise UserError(
                    f"prompts: the guardrail of Cosmos refuses {prompt!r} (NVIDIA Open Model License); "
                    "leave it out"
                )
        guardrail.to("cpu")
        return super().encode(prompts, images)

    def build_decoder(self, options: DecoderOptions) -> GuardedStream:
        return GuardedStream(self.pipe.vae, self.pipe.safety_checker, offload_cache=options.offload_cache)


class GuardedStream(WanStream):
    """Wan's decoder; finished videos pass the guardrail, in 8 bits, as in the pipeline.

    Args:
        vae: the autoencoder.
        guardrail: ``cosmos_guardrail.CosmosSafetyChecker``, which blurs faces and may refuse a video.
        offload_cache: see `StreamedDecoder`.
    """

    def __init__(self, vae: Any, guardrail: Any, *, offload_cache: bool = False) -> None:
        super().__init__(vae, offload_cache=offload_cache)
        self._guardrail = guardrail

    def finished(self, frames: Frames) -> Frames:
        """Return the checked frames.

        Raises:
            RunFailed: the guardrail refuses a video.
        """
        self._guardrail.to(frames.device)
        videos = (frames.detach().movedim(2, -1).float().cpu().numpy() * 255).astype(np.uint8)
        checked = [self._guardrail.check_video_safety(video) for video in videos]
        self._guardrail.to("cpu")
        if any(video is None for video in checked):
            raise RunFailed(
                "the guardrail of Cosmos refuses a finished video (NVIDIA Open Model License); choose other "
                "prompts"
            )
        pixels = torch.from_numpy(np.stack(checked)).to(frames) / 255
        return pixels.movedim(-1, 2)
