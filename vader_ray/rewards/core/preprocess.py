"""Differentiable preprocessing of frames: resize, crop, letterbox, normalise; any float dtype.

Resizing is linear and separable, so it is ``A @ image @ Bᵀ``. The two matrices come from resizing an identity
matrix with torch's own filter: the same numbers as ``F.interpolate`` in forward and backward, computed by
matrix products. Unlike the backward pass of ``F.interpolate`` on a GPU it is deterministic.
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
"""Offset of a centre crop that removes an odd number of pixels: torchvision takes the even one of the two
middle offsets, transformers the smaller. OpenAI's CLIP and open_clip crop with torchvision."""
Preprocessing: TypeAlias = Literal["published", "vader"]
"""``published``: that of the scorer's authors, comparable with leaderboards; ``vader``: that of VADER's
code."""

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
    clamp: bool = True,
) -> Float[Tensor, "*n 3 h w"]:
    """Resize images.

    With ``clamp``, bicubic overshoot is clamped to [0, 1], as in 8-bit images; scorers that resize tensors
    of floats keep it.
    """
    rows = resize_matrix(images.shape[-2], height, mode, images.dtype, images.device, antialias)
    columns = resize_matrix(images.shape[-1], width, mode, images.dtype, images.device, antialias)
    resized = rows @ images @ columns.T
    return resized.clamp(0, 1) if clamp and mode == "bicubic" else resized


def squash(
    images: Float[Tensor, "*n 3 height width"], size: int, mode: Filter, *, clamp: bool = True
) -> Float[Tensor, "*n 3 size size"]:
    """Resize the whole image to a square, without keeping its aspect ratio."""
    return resize(images, size, size, mode, clamp=clamp)


def crop(
    images: Float[Tensor, "*n 3 height width"],
    size: int,
    mode: Filter,
    rounding: Rounding = "torchvision",
    *,
    short: int | None = None,
    antialias: bool = True,
) -> Float[Tensor, "*n 3 size size"]:
    """Resize the short side to ``short`` pixels, by default ``size``, and crop the centre square."""
    height, width = images.shape[-2:]
    height, width = short_side_at(height, width, short or size)
    rows, columns = (centre(side, size, rounding) for side in (height, width))
    return resize(images, height, width, mode, antialias=antialias)[..., rows, columns]


def letterbox(
    images: Float[Tensor, "*n 3 height width"], size: int, mode: Filter
) -> Float[Tensor, "*n 3 size size"]:
    """Resize the long side to ``size`` and centre the image on a black square (HPSv2).

    As hpsv2 1.2.0 does with tensors of floats, bicubic overshoot stays.
    """
    sides = letterboxed_size(images.shape[-2], images.shape[-1], size)
    images = resize(images, *sides, mode, clamp=False)
    down, across = (size - side for side in images.shape[-2:])
    return functional.pad(images, (across // 2, across - across // 2, down // 2, down - down // 2))


def letterboxed_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Return height and width with the long side at ``size``, rounded after scaling, as hpsv2 1.2.0 does."""
    scale = size / max(height, width)
    return round(height * scale), round(width * scale)


def normalise(
    images: Float[Tensor, "*n 3 h w"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "*n 3 h w"]:
    """Subtract each channel's mean and divide by its standard deviation."""
    return (images - images.new_tensor(mean)[:, None, None]) / images.new_tensor(std)[:, None, None]


def short_side_at(height: int, width: int, size: int) -> tuple[int, int]:
    """Return height and width with the short side at ``size``.

    The long side is rounded down, as in torchvision.
    """
    short = min(height, width)
    return int(size * height / short), int(size * width / short)


def centre(side: int, size: int, rounding: Rounding) -> slice:
    """Return the ``size`` pixels in the middle of a side."""
    excess = side - size
    start = round(excess / 2) if rounding == "torchvision" else excess // 2
    return slice(start, start + size)


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
