"""What rewards do not say of held-out videos: how far apart they lie, how much they move, how far they are from the base model's.

All of it needs no weights. Videos are compared as thumbnails, small enough to be gathered and to lie in a checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional

from vader_ray.rewards.diversity import mean_to_others
from vader_ray.rewards.motion import MotionReward as Motion
from vader_ray.types import Frames

Thumbnails = UInt8[Tensor, "videos frames 3 height width"]

THUMBNAIL_SIDE, THUMBNAIL_FRAMES = 32, 16
"""Longest short side, and most frames, of what is compared."""
NUM_RESAMPLES, CONFIDENCE = 2000, 0.95
"""Of the bootstrap."""


def thumbnails(frames: Frames) -> Thumbnails:
    """At most `THUMBNAIL_FRAMES` evenly spaced frames of each video, averaged down over areas, on the CPU."""
    count, (height, width) = frames.shape[1], frames.shape[-2:]
    chosen = torch.linspace(0, count - 1, min(count, THUMBNAIL_FRAMES)).round().long().tolist()
    factor = -(-min(height, width) // THUMBNAIL_SIDE)
    small = functional.adaptive_avg_pool2d(
        frames[:, chosen].flatten(0, 1).float(), (height // factor, width // factor)
    )
    pixels: Tensor = (
        (small.clamp(0, 1) * 255).round().to(torch.uint8).unflatten(0, (len(frames), len(chosen))).cpu()
    )
    return pixels


def distances(one: Thumbnails, other: Thumbnails) -> list[float]:
    """Root mean square difference of each video of ``one`` to its partner in ``other``, 0 alike to 1."""
    differences = (one.float() - other.float()) / 255
    return differences.square().flatten(1).mean(dim=1).sqrt().tolist()


def spread(seen: Thumbnails, prompts: Sequence[str]) -> list[float]:
    """Mean distance (as `distances`) of each video to those of its prompt, to all others where its prompt has no other.

    It falls to 0 where a model has collapsed to one video. A single video differs from nothing: 0.
    """
    if len(seen) < 2:
        return [0.0] * len(seen)
    rows = seen.float().flatten(1) / 255
    apart = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist") / rows.shape[1] ** 0.5
    return mean_to_others(apart, prompts).tolist()


def speeds(frames: Frames) -> list[float]:
    """Mean length of the optical flow of each video in pixels per frame (`vader_ray.rewards.motion`); 0 for one frame."""
    if frames.shape[1] < 2:
        return [0.0] * len(frames)
    motion, pixels = Motion(), frames.float()
    pairs = [
        motion(pixels[:, first : first + 2], ()) for first in range(frames.shape[1] - 1)
    ]  # by pairs: flow is large
    return torch.stack(pairs).mean(dim=0).tolist()


def interval(values: Sequence[float], resamples: Tensor) -> tuple[float, float]:
    """The bounds of the 95 % confidence interval of the mean, by the percentile bootstrap (Efron 1979).

    Args:
        resamples: of `draw_resamples`; the same for all that is to be compared.
    """
    means = torch.tensor(values, dtype=torch.float64)[resamples].mean(dim=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def draw_resamples(num_values: int, generator: torch.Generator) -> Tensor:
    """Places with replacement, `NUM_RESAMPLES` rows of them."""
    return torch.randint(num_values, (NUM_RESAMPLES, num_values), generator=generator)
