"""How rewards resize frames, and which part of the resized ones they use.

A remote reward is sent no more than that (`vader_ray.orchestration.reward_service`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vader_ray.rewards.core.preprocess import (
    Filter,
    Rounding,
    centre,
    letterboxed_size,
    resize_matrix,
    short_side_at,
)


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

    @property
    def num_pixels(self) -> int:
        """Number of pixels of the part that is used."""
        rows, columns = range(self.height)[self.rows], range(self.width)[self.columns]
        return len(rows) * len(columns)

    def apply(self, frames: Tensor) -> Tensor:
        """Resize frames ``… height width`` of any size; bicubic overshoot is kept."""
        if frames.shape[-2:] == (self.height, self.width):
            return frames
        rows, columns = self._matrices(frames.shape[-2], frames.shape[-1], frames.dtype, frames.device)
        return rows @ frames @ columns.T

    def gradient(self, gradient: Tensor, height: int, width: int) -> Tensor:
        """Return the gradient with respect to frames of this size, given that of the resized ones."""
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


def whole(height: int, width: int, mode: Filter = "bilinear", *, antialias: bool = True) -> Resizing:
    """Return that of a reward that resizes frames to this size and uses all of them."""
    return Resizing(height, width, slice(0, height), slice(0, width), mode, antialias)


def centre_square(
    height: int,
    width: int,
    size: int,
    mode: Filter,
    rounding: Rounding = "torchvision",
    *,
    short: int | None = None,
) -> Resizing:
    """Return that of `vader_ray.rewards.core.preprocess.crop` on frames of ``height`` and ``width``."""
    resized = short_side_at(height, width, short or size)
    rows, columns = (centre(side, size, rounding) for side in resized)
    return Resizing(*resized, rows, columns, mode)


def letterboxed(height: int, width: int, size: int, mode: Filter) -> Resizing:
    """Return that of `vader_ray.rewards.core.preprocess.letterbox` on frames of ``height`` and ``width``."""
    return whole(*letterboxed_size(height, width, size), mode)


def _support(weights: Tensor) -> slice:
    """Return the smallest range of columns outside of which a matrix is 0."""
    used = weights.any(dim=0).nonzero()
    return slice(int(used[0]), int(used[-1]) + 1)
