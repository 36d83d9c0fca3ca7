"""Thumbnails: videos reduced so far that those of all workers fit into one process and into a checkpoint."""

from __future__ import annotations

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional

from vader_ray.types import Frames

Thumbnails = UInt8[Tensor, "videos pixels"]
"""The pixels of each video's thumbnail, 0 to 255, ``frames 3 height width`` flattened."""

SIDE, NUM_FRAMES = 32, 16
"""Short side in pixels that is not much exceeded, and most frames, of a thumbnail."""


def thumbnails(frames: Frames) -> Thumbnails:
    """Reduce at most `NUM_FRAMES` evenly spaced frames of each video to a short side of about `SIDE`.

    Pixels are averaged over areas; the result is on the CPU.
    """
    count, (height, width) = frames.shape[1], frames.shape[-2:]
    chosen = torch.linspace(0, count - 1, min(count, NUM_FRAMES)).round().long().tolist()
    factor = -(-min(height, width) // SIDE)
    small = functional.adaptive_avg_pool2d(
        frames[:, chosen].flatten(0, 1).float(), (height // factor, width // factor)
    )
    pixels: Tensor = (small.clamp(0, 1) * 255).round().to(torch.uint8).view(len(frames), -1).cpu()
    return pixels
