"""What a reward's network sees of frames: resize, crop, letterbox, normalise. Differentiable, deterministic, any float dtype.

Resizing is linear and separable, so it is ``A @ image @ Bᵀ`` with the two matrices obtained by resizing an identity with
torch's own filter: the same numbers as ``F.interpolate`` in both directions, in GEMMs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

Filter: TypeAlias = Literal["bilinear", "bicubic"]
Rounding: TypeAlias = Literal["torchvision", "transformers"]
"""Of two middles, which one a centre crop takes where an odd number of pixels is cut off: torchvision the even offset,
transformers the smaller one. OpenAI's CLIP and open_clip crop with torchvision."""
Preprocessing: TypeAlias = Literal["published", "vader"]
"""``published``: as the scorer's authors do it, comparable with leaderboards; ``vader``: as VADER's code does it."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def resize(
    images: Float[Tensor, "*n 3 height width"],
    height: int,
    width: int,
    mode: Filter,
    *,
    antialias: bool = True,
) -> Float[Tensor, "*n 3 h w"]:
    """The images at another size; bicubic overshoot is clamped to [0, 1], as 8-bit images are."""
    rows = _matrix(images.shape[-2], height, mode, images.dtype, images.device, antialias)
    columns = _matrix(images.shape[-1], width, mode, images.dtype, images.device, antialias)
    resized = rows @ images @ columns.T
    return resized.clamp(0, 1) if mode == "bicubic" else resized


def squash(
    images: Float[Tensor, "*n 3 height width"], size: int, mode: Filter
) -> Float[Tensor, "*n 3 size size"]:
    """The whole image as a square, whatever its aspect."""
    return resize(images, size, size, mode)


def crop(
    images: Float[Tensor, "*n 3 height width"],
    size: int,
    mode: Filter,
    rounding: Rounding = "torchvision",
    *,
    short: int | None = None,
) -> Float[Tensor, "*n 3 size size"]:
    """The centre square after the short side was resized to ``short``, by default ``size``."""
    height, width = images.shape[-2:]
    height, width = _short_side_at(height, width, short or size)
    top, left = (_offset(side - size, rounding) for side in (height, width))
    return resize(images, height, width, mode)[..., top : top + size, left : left + size]


def crop_region(
    height: int,
    width: int,
    size: int,
    mode: Filter,
    rounding: Rounding = "torchvision",
    *,
    short: int | None = None,
) -> tuple[slice, slice]:
    """The rows and columns of an image that `crop` sees; those outside have weight exactly 0."""
    resized = _short_side_at(height, width, short or size)
    rows, columns = (
        _support(side, side_resized, _offset(side_resized - size, rounding), size, mode)
        for side, side_resized in zip((height, width), resized, strict=True)
    )
    return rows, columns


def letterbox(
    images: Float[Tensor, "*n 3 height width"], size: int, mode: Filter
) -> Float[Tensor, "*n 3 size size"]:
    """The whole image with its long side at ``size``, centred on black (HPSv2)."""
    height, width = images.shape[-2:]
    long = max(height, width)
    images = resize(images, round(height * size / long), round(width * size / long), mode)
    down, across = (size - side for side in images.shape[-2:])
    return functional.pad(images, (across // 2, across - across // 2, down // 2, down - down // 2))


def normalise(
    images: Float[Tensor, "*n 3 h w"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "*n 3 h w"]:
    """The images with each channel's mean taken off and divided by its standard deviation."""
    return (images - images.new_tensor(mean)[:, None, None]) / images.new_tensor(std)[:, None, None]


def _short_side_at(height: int, width: int, size: int) -> tuple[int, int]:
    """The height and width with the short side at ``size``, the long one rounded down as torchvision and transformers do."""
    short = min(height, width)
    return int(size * height / short), int(size * width / short)


def _offset(excess: int, rounding: Rounding) -> int:
    return round(excess / 2) if rounding == "torchvision" else excess // 2


def _support(size: int, resized: int, start: int, length: int, mode: Filter) -> slice:
    """The part of an axis that ``length`` pixels of the resized one from ``start`` on are made of."""
    weights = _matrix(size, resized, mode, torch.float64, torch.device("cpu"))[start : start + length]
    used = weights.any(dim=0).nonzero()
    return slice(int(used[0]), int(used[-1]) + 1)


@lru_cache(maxsize=64)
def _matrix(
    size: int, resized: int, mode: Filter, dtype: torch.dtype, device: torch.device, antialias: bool = True
) -> Float[Tensor, "resized size"]:
    """The matrix that resizes one axis, computed in float64."""
    # A tensor made under inference mode could never be saved for a later backward.
    with torch.inference_mode(False), torch.no_grad():
        identity = torch.eye(size, dtype=torch.float64, device="cpu")[None, None]
        matrix = functional.interpolate(identity, size=(resized, size), mode=mode, antialias=antialias)[0, 0]
        return matrix.to(device=device, dtype=dtype)
