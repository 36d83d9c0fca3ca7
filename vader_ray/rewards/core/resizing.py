"""How rewards resize frames, and which part of the resized ones they use.

Resizing is linear and separable, so it is ``A @ image @ Bᵀ``. The two matrices come from resizing an identity
matrix with torch's own filter: the same numbers as ``F.interpolate`` in forward and backward, computed by
matrix products. Unlike the backward pass of ``F.interpolate`` on a GPU it is deterministic.

A remote reward is sent no more than the part it uses (`vader_ray.orchestration.reward_service`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

Filter: TypeAlias = Literal["bilinear", "bicubic"]
Rounding: TypeAlias = Literal["torchvision", "transformers"]
"""Offset of a centre crop that removes an odd number of pixels: torchvision takes the even one of the two
middle offsets, transformers the smaller. OpenAI's CLIP and open_clip crop with torchvision."""


@dataclass(frozen=True, slots=True)
class Resizing:
    """Size of the frames after a reward has resized them, and the part of these that it uses."""

    height: int
    """Height of a resized frame in pixels."""
    width: int
    """Width of a resized frame in pixels."""
    rows: slice
    """Rows of the resized frame that influence the score."""
    columns: slice
    """Columns of the resized frame that influence the score."""
    mode: Filter = "bilinear"
    antialias: bool = True
    clamp: bool = True
    """Whether bicubic overshoot is clamped to [0, 1], as in 8-bit images; scorers that resize tensors of
    floats keep it."""

    @property
    def num_pixels(self) -> int:
        """Number of pixels of the part that is used."""
        rows, columns = range(self.height)[self.rows], range(self.width)[self.columns]
        return len(rows) * len(columns)

    def seen(self, frames: Float[Tensor, "*n height width"]) -> Float[Tensor, "*n rows columns"]:
        """Return the part of the resized frames that is used; frames may have any size."""
        part = self.apply(frames)[..., self.rows, self.columns]
        return part.clamp(0, 1) if self.clamp and self.mode == "bicubic" else part

    def apply(self, frames: Float[Tensor, "*n height width"]) -> Float[Tensor, "*n h w"]:
        """Resize frames of any size, without a clamp: the linear part of `seen`."""
        if frames.shape[-2:] == (self.height, self.width):
            return frames
        rows, columns = self._matrices(frames.shape[-2], frames.shape[-1], frames.dtype, frames.device)
        return rows @ frames @ columns.T

    def gradient(
        self, gradient: Float[Tensor, "*n h w"], height: int, width: int
    ) -> Float[Tensor, "*n height width"]:
        """Return the gradient with respect to frames of this size, given that of what `apply` returned."""
        if (height, width) == (self.height, self.width):
            return gradient
        rows, columns = self._matrices(height, width, gradient.dtype, gradient.device)
        return rows.T @ (gradient @ columns)

    def region(self, height: int, width: int) -> tuple[slice, slice]:
        """Return the rows and columns of frames of this size that influence the score.

        Pixels outside have a weight of exactly 0.
        """
        rows, columns = self._matrices(height, width, torch.float64, torch.device("cpu"))
        return _support(rows[self.rows]), _support(columns[self.columns])

    def _matrices(
        self, height: int, width: int, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        rows = resize_matrix(height, self.height, self.mode, dtype, device, self.antialias)
        columns = resize_matrix(width, self.width, self.mode, dtype, device, self.antialias)
        return rows, columns


def whole(
    height: int, width: int, mode: Filter = "bilinear", *, antialias: bool = True, clamp: bool = True
) -> Resizing:
    """Resize frames to this size and use all of them."""
    return Resizing(height, width, slice(0, height), slice(0, width), mode, antialias, clamp)


def centre_square(
    height: int,
    width: int,
    size: int,
    mode: Filter,
    rounding: Rounding = "torchvision",
    *,
    short: int | None = None,
    antialias: bool = True,
) -> Resizing:
    """Resize the short side to ``short`` pixels, by default ``size``, and use the centre square.

    Args:
        height: of the frames, in pixels.
        width: of the frames, in pixels.
        size: side of the square, in pixels.
        mode: filter.
        rounding: of the square's offset.
        short: short side of the resized frames, in pixels.
        antialias: of the filter.
    """
    resized = short_side_at(height, width, short or size)
    rows, columns = (_centre(side, size, rounding) for side in resized)
    return Resizing(*resized, rows, columns, mode, antialias)


def letterboxed(height: int, width: int, size: int, mode: Filter) -> Resizing:
    """Resize the long side to ``size``.

    Sides are rounded after scaling and bicubic overshoot stays, as hpsv2 1.2.0 does with tensors of floats.
    """
    scale = size / max(height, width)
    return whole(round(height * scale), round(width * scale), mode, clamp=False)


def short_side_at(height: int, width: int, size: int) -> tuple[int, int]:
    """Return height and width with the short side at ``size``.

    The long side is rounded down, as in torchvision.
    """
    short = min(height, width)
    return int(size * height / short), int(size * width / short)


def _centre(side: int, size: int, rounding: Rounding) -> slice:
    """Return the ``size`` pixels in the middle of a side."""
    excess = side - size
    start = round(excess / 2) if rounding == "torchvision" else excess // 2
    return slice(start, start + size)


def _support(weights: Tensor) -> slice:
    """Return the smallest range of columns outside of which a matrix is 0."""
    used = weights.any(dim=0).nonzero()
    return slice(int(used[0]), int(used[-1]) + 1)


@lru_cache(maxsize=64)
def resize_matrix(
    size: int, resized: int, mode: Filter, dtype: torch.dtype, device: torch.device, antialias: bool = True
) -> Float[Tensor, "resized size"]:
    """Return the matrix that resizes one axis, computed in float64."""
    # The matrix is cached: made in inference mode, it could not be saved for the backward pass of a later
    # call.
    with torch.inference_mode(False), torch.no_grad():
        identity = torch.eye(size, dtype=torch.float64, device="cpu")[None, None]
        matrix = functional.interpolate(identity, size=(resized, size), mode=mode, antialias=antialias)[0, 0]
        return matrix.to(device=device, dtype=dtype)
