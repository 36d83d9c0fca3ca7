"""Chains of clips by plain autograd: pipelines' own loops on frames, and the library's own networks."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import (
    _resize_with_antialiasing,
)
from PIL import Image
from torch import Tensor
from torch.nn import functional

from tests.helpers.families import Case
from tests.helpers.family_runs import SEEDS, call_loop, cut_behind_denoiser
from vader_ray.config import validate
from vader_ray.models.core.conditioning import open_images
from vader_ray.models.core.loop_hooks import replace_attribute
from vader_ray.training.distributed import WorkerGroup
from vader_ray.training.dry_run import check_step
from vader_ray.types import Frames


def chain_by_loops(
    case: Case, model: Any, images: list[Path], graded: tuple[int, ...], num_clips: int, num_graded: int
) -> Frames:
    """One video of several clips, with the graph of the graded steps in the last ``num_graded`` clips."""
    loop, one = inspect.unwrap(type(model.pipe).__call__), slice(0, 1)
    given: Any = open_images(model.sampling, images)[one] if case.images else None
    parts = list[Tensor]()
    for clip in range(num_clips):
        with _on_frames(model.pipe, given) as accepted, cut_behind_denoiser(case, model, graded):
            frames = call_loop(case, model, accepted, one, loop, [_seed(SEEDS[0], clip)])
        if clip < num_clips - num_graded:
            frames = frames.detach()
        parts.append(frames if clip == 0 else frames[:, 1:])
        given = frames[:, -1]
    return torch.cat(parts, dim=1)


def _seed(seed: int, clip: int) -> int:
    """The documented seed of a clip's noise."""
    return (
        seed
        if clip == 0
        else int(np.random.SeedSequence([seed, clip, 1]).generate_state(1, np.uint64)[0]) >> 1
    )


@contextmanager
def _on_frames(pipe: Any, given: Any) -> Iterator[Any]:
    """Let a pipeline encode frames where its methods take pictures alone; yield its argument ``image``."""
    with ExitStack() as undo:
        if type(pipe).__name__ == "StableVideoDiffusionPipeline":
            replace_attribute(undo, pipe, "decode_latents", lambda *args: _decoded_by_svd(pipe, *args))
        if not isinstance(given, Tensor):
            yield given
            return
        for name, method in _METHODS.get(type(pipe).__name__, {}).items():
            replace_attribute(undo, pipe, name, lambda *args, method=method, **kwargs: method(pipe, given))
        is_picture = type(pipe).__name__ == "HunyuanVideo15ImageToVideoPipeline"
        yield [Image.new("RGB", (given.shape[-1], given.shape[-2]))] if is_picture else given


def _decoded_by_svd(pipe: Any, latents: Tensor, num_frames: int, *_: Any) -> Tensor:
    """The library casts to float32."""
    images = latents.flatten(0, 1) / pipe.vae.config.scaling_factor
    decoded: Tensor = pipe.vae.decode(images, num_frames=num_frames).sample
    return decoded.unflatten(0, (len(latents), num_frames)).transpose(1, 2)


def _normalised(frames: Tensor, processor: Any) -> Tensor:
    mean, deviation = (
        torch.tensor(each, dtype=frames.dtype).view(3, 1, 1)
        for each in (processor.image_mean, processor.image_std)
    )
    return (frames - mean) / deviation


def _resized(frames: Tensor, processor: Any) -> Tensor:
    """Square frames at the processor's size; of CLIP bicubic, of SigLIP as its settings say."""
    side = processor.size.get("shortest_edge") or processor.size["height"]
    mode = {2: "bilinear", 3: "bicubic"}[int(processor.resample)]
    return functional.interpolate(frames, (side, side), mode=mode, antialias=True, align_corners=False)


def _svd(pipe: Any, frames: Tensor) -> Tensor:
    resized = _resize_with_antialiasing(frames * 2 - 1, (224, 224)) / 2 + 0.5
    embeds: Tensor = pipe.image_encoder(_normalised(resized, pipe.feature_extractor)).image_embeds[:, None]
    return torch.cat([torch.zeros_like(embeds), embeds])


def _wan(pipe: Any, frames: Tensor) -> Tensor:
    pixels = _normalised(_resized(frames, pipe.image_processor), pipe.image_processor)
    hidden: Tensor = pipe.image_encoder(pixels, output_hidden_states=True).hidden_states[-2]
    return hidden


def _siglip(encoder: Any, pipe: Any, frames: Tensor) -> Tensor:
    pixels = _normalised(_resized(frames, pipe.feature_extractor), pipe.feature_extractor)
    hidden: Tensor = encoder(pixels).last_hidden_state
    return hidden


_METHODS: dict[str, dict[str, Any]] = {
    "StableVideoDiffusionPipeline": {"_encode_image": _svd},
    "WanImageToVideoPipeline": {"encode_image": _wan},
    "SkyReelsV2ImageToVideoPipeline": {"encode_image": _wan},
    "MotifVideoImage2VideoPipeline": {
        "_get_image_embeds": lambda pipe, frames: _siglip(pipe.text_encoder.vision_tower, pipe, frames)
    },
    "HunyuanVideo15ImageToVideoPipeline": {
        "_get_image_embeds": lambda pipe, frames: _siglip(pipe.image_encoder, pipe, frames),
        "_get_image_latents": lambda pipe, frames: (
            pipe.vae.encode((frames * 2 - 1)[:, :, None]).latent_dist.mode() * pipe.vae.config.scaling_factor
        ),
    },
}
"""Methods of pipelines that convert an image to an array, and the same on frames."""


def gradient_of_a_step(group: WorkerGroup, document: dict[str, Any]) -> tuple[dict[str, float], Tensor]:
    """Mean scores of this worker's videos, and the adapter's gradient over all workers."""
    found, gradient = check_step(validate(document), group, torch.device("cpu"))
    return found.scores, gradient
