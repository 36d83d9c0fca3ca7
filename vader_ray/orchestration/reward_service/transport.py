"""Encoding of frames and gradients: NumPy arrays, which Ray shares without a copy on one machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from numpy.typing import NDArray
from torch import Tensor

from vader_ray.rewards.core.resizing import Resizing, whole
from vader_ray.types import Frames, Granularity, Reward

Region: TypeAlias = tuple[slice, slice]
"""Rows and columns of frames."""


@dataclass(frozen=True, slots=True)
class RewardSpec:
    """Properties of a reward that its callers need and that are known once it is loaded."""

    granularity: Granularity
    unit: str
    unresized: Resizing
    """Frames as they are, and the region of them that the reward uses."""
    resized: Resizing
    """Frames as the reward resizes them, and the region that it uses, if that has fewer pixels; otherwise as
    ``unresized``."""


def spec_of(reward: Reward, height: int, width: int) -> RewardSpec:
    """Return the properties of a loaded reward for frames of this size."""
    resizing_of = getattr(reward, "resizing", whole)
    resizing: Resizing = resizing_of(height, width)
    rows, columns = resizing.region(height, width)
    unresized = Resizing(height, width, rows, columns)
    is_left_as_it_is = resizing_of(resizing.height, resizing.width) == resizing
    is_smaller = resizing.num_pixels < unresized.num_pixels
    resized = resizing if is_left_as_it_is and is_smaller else unresized
    return RewardSpec(reward.granularity, reward.unit, unresized, resized)


@dataclass(frozen=True, slots=True)
class EncodedFrames:
    """A region of a batch of frames, or of gradients, in the precision of its transport."""

    pixels: NDArray[Any]
    """``batch frames 3 rows columns``; bfloat16, which NumPy lacks, as int16 with the same bits."""
    dtype: str
    """Name of the torch dtype."""
    scale: tuple[float, ...] | None
    """Power of two, per video, by which a gradient in half precision was multiplied; None is 1 for all."""
    region: Region
    """Region of the frames that ``pixels`` contains."""
    height: int
    """Height in pixels of the frames of which this is a region."""
    width: int
    """Width in pixels of the frames of which this is a region."""


def encode_frames(
    frames: Frames, region: Region, transport: str, *, is_gradient: bool = False
) -> EncodedFrames:
    """Encode the region of a batch of frames.

    Args:
        frames: frames, or gradients with respect to frames.
        region: rows and columns that are sent.
        transport: name of the torch dtype in which they are sent.
        is_gradient: scale each video to the range of half precision.
    """
    height, width = frames.shape[-2:]
    part = frames.detach()[..., region[0], region[1]]
    scale = None
    if is_gradient and transport != "float32":
        scale = _scale(part)
        part = part * torch.tensor(scale).to(part)[:, None, None, None, None]
    part = part.to(device="cpu", dtype=getattr(torch, transport)).contiguous()
    bits = part.view(torch.int16) if transport == "bfloat16" else part
    return EncodedFrames(bits.numpy(), transport, scale, region, height, width)


def decode_frames(encoded: EncodedFrames, device: torch.device) -> Frames:
    """Decode to float32 at the full size; zero outside the region."""
    # one copy, since Ray's shared memory is read-only, which torch does not support
    bits = torch.from_numpy(encoded.pixels.copy()).to(device)
    part = (bits.view(torch.bfloat16) if encoded.dtype == "bfloat16" else bits).float()
    if encoded.scale is not None:
        part /= torch.tensor(encoded.scale, device=device)[:, None, None, None, None]
    if part.shape[-2:] == (encoded.height, encoded.width):
        return part
    full = part.new_zeros(*part.shape[:-2], encoded.height, encoded.width)
    full[..., encoded.region[0], encoded.region[1]] = part
    return full


def _scale(part: Tensor) -> tuple[float, ...]:
    """Per video, the power of two that scales its largest value to between 1 and 2; 1 if all are 0."""
    largest = part.flatten(1).abs().amax(dim=1).float().cpu()
    exponent = torch.where(largest > 0, largest.log2().floor(), torch.zeros_like(largest))
    return tuple(torch.exp2(-exponent.clamp(-100, 100)).tolist())
