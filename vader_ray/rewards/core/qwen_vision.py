"""Frames as the Qwen vision towers take them: sizes, patches and what follows from their numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import vision_utils

from vader_ray.rewards.core.preprocess import CLIP_MEAN, CLIP_STD

HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, slots=True)
class VisionFormat:
    """How a family cuts frames into tokens."""

    patch: int
    """Side of a patch in pixels."""
    merge: int
    """Patches along the side of a token."""
    tubelet: int
    """Frames of a patch."""
    mean: tuple[float, ...]
    """Mean of each colour channel."""
    std: tuple[float, ...]
    """Standard deviation of each colour channel."""

    @property
    def factor(self) -> int:
        """Side of a token in pixels."""
        return self.patch * self.merge


def vision_format(config: Any) -> VisionFormat:
    """Return the format of a network, from its transformers config."""
    vision = config.vision_config
    mean, std = (HALF, HALF) if config.model_type == "qwen3_vl" else (CLIP_MEAN, CLIP_STD)
    return VisionFormat(vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size, mean, std)


def smart_size(height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Return the published size of a resized frame.

    Both sides are multiples of ``factor``, and their product is between the limits if the multiples allow it.
    """
    rows, columns = (max(factor, round(side / factor) * factor) for side in (height, width))
    if rows * columns > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows, columns = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    elif rows * columns < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows, columns = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return rows, columns


def patchify(
    pixels: Float[Tensor, "frames 3 height width"], style: VisionFormat
) -> tuple[Float[Tensor, "patches values"], tuple[int, int, int]]:
    """Cut frames into patches; return them with their numbers in time, height and width.

    Patches are ordered by time, row and column of their token, then row and column inside the token; their
    values by channel, time, row and column.
    """
    missing = -len(pixels) % style.tubelet
    pixels = torch.cat([pixels, pixels[-1:].expand(missing, -1, -1, -1)]) if missing else pixels
    grid = (
        len(pixels) // style.tubelet,
        pixels.shape[-2] // style.patch,
        pixels.shape[-1] // style.patch,
    )
    rows, columns = grid[1] // style.merge, grid[2] // style.merge
    inside = (style.merge, style.patch)
    cut = pixels.reshape(grid[0], style.tubelet, 3, rows, *inside, columns, *inside)
    ordered = cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return ordered.reshape(math.prod(grid), -1), grid


def patch_geometry(visual: Any, grid: tuple[int, int, int], device: torch.device) -> dict[str, Tensor]:
    """Return what a vision tower derives from the numbers of patches: positions, segments and windows.

    It is computed on the CPU by transformers' own functions, as the tower would compute it, and so without
    waiting for the device.
    """
    numbers = torch.tensor([grid], device="cpu")
    merge: int = visual.spatial_merge_size
    positions = vision_utils.get_vision_position_ids(numbers, merge)
    found = {"position_ids": positions.to(device), "cu_seqlens": vision_utils.get_vision_cu_seqlens(numbers)}
    if hasattr(visual, "window_size"):
        index, borders = vision_utils.get_vision_window_index(
            numbers, merge, visual.window_size, visual.patch_size
        )
        found |= {"window_index": index.to(device), "cu_window_seqlens": borders}
    if hasattr(visual, "num_grid_per_side"):
        indices, weights = vision_utils.get_vision_interpolation_indices_and_weights(
            numbers,
            visual.num_grid_per_side,
            visual.interpolation_mode,
            visual.interpolation_align_corners,
            merge,
        )
        found |= {"interp_indices": indices.to(device), "interp_weights": weights.to(device)}
    return found
