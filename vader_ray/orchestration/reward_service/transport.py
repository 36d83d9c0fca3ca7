"""How frames and gradients travel between processes: numpy arrays, which Ray shares without a copy on one machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from numpy.typing import NDArray
from torch import Tensor

Region: TypeAlias = tuple[slice, slice]
"""The rows and columns of the frames that a reward looks at."""


@dataclass(frozen=True, slots=True)
class EncodedFrames:
    """A video batch on its way: the part that counts, in the precision that was asked for."""

    pixels: NDArray[Any]
    """``bfloat16``, which numpy has not, as its 16 bits."""
    dtype: str
    scale: tuple[float, ...] | None
    """Power of two, per video, by which half precision was multiplied; None is 1 for all."""
    region: Region
    height: int
    width: int


def pack(frames: Tensor, region: Region, transport: str, *, scaled: bool = False) -> EncodedFrames:
    """The region of a batch of frames (or of gradients, ``scaled`` to the range of half precision) as bytes."""
    height, width = frames.shape[-2:]
    part = frames.detach()[..., region[0], region[1]]
    scale = None
    if scaled and transport != "float32":
        scale = _scale(part)
        part = part * torch.tensor(scale).to(part)[:, None, None, None, None]
    part = part.to(device="cpu", dtype=getattr(torch, transport)).contiguous()
    bits = part.view(torch.int16) if transport == "bfloat16" else part
    return EncodedFrames(bits.numpy(), transport, scale, region, height, width)


def unpack(packed: EncodedFrames, device: torch.device) -> Tensor:
    """The batch in float32 at its full size; outside the region it is zero."""
    # What Ray shares is read-only, which torch cannot hold: one copy.
    bits = torch.from_numpy(packed.pixels.copy()).to(device)
    part = (bits.view(torch.bfloat16) if packed.dtype == "bfloat16" else bits).float()
    if packed.scale is not None:
        part /= torch.tensor(packed.scale, device=device)[:, None, None, None, None]
    if part.shape[-2:] == (packed.height, packed.width):
        return part
    full = part.new_zeros(*part.shape[:-2], packed.height, packed.width)
    full[..., packed.region[0], packed.region[1]] = part
    return full


def _scale(part: Tensor) -> tuple[float, ...]:
    """For each video, the power of two that brings its largest value to between 1 and 2; 1 for zeros."""
    largest = part.flatten(1).abs().amax(dim=1).float().cpu()
    exponent = torch.where(largest > 0, largest.log2().floor(), torch.zeros_like(largest))
    return tuple(torch.exp2(-exponent.clamp(-100, 100)).tolist())
