"""Differentiable preprocessing of frames: resize, crop, letterbox, normalise; any float dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from vader_ray.rewards.core.resizing import Filter, Rounding, centre_square, letterboxed, whole

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
    """Resize images; with ``clamp``, bicubic overshoot is clamped to [0, 1], as in 8-bit images."""
    return whole(height, width, mode, antialias=antialias, clamp=clamp).seen(images)


def squash(
    images: Float[Tensor, "*n 3 height width"], size: int, mode: Filter
) -> Float[Tensor, "*n 3 size size"]:
    """Resize the whole image to a square, without keeping its aspect ratio."""
    return resize(images, size, size, mode)


def crop(
    images: Float[Tensor, "*n 3 height width"],
    size: int,
    mode: Filter,
    rounding: Rounding = "torchvision",
    *,
    antialias: bool = True,
) -> Float[Tensor, "*n 3 size size"]:
    """Resize the short side to ``size`` pixels and crop the centre square."""
    height, width = images.shape[-2:]
    return centre_square(height, width, size, mode, rounding, antialias=antialias).seen(images)


def letterbox(
    images: Float[Tensor, "*n 3 height width"], size: int, mode: Filter
) -> Float[Tensor, "*n 3 size size"]:
    """Resize the long side to ``size`` and centre the image on a black square (HPSv2)."""
    height, width = images.shape[-2:]
    return on_black(letterboxed(height, width, size, mode).seen(images), size)


def on_black(images: Float[Tensor, "*n 3 height width"], size: int) -> Float[Tensor, "*n 3 size size"]:
    """Centre images on a black square."""
    down, across = (size - side for side in images.shape[-2:])
    return functional.pad(images, (across // 2, across - across // 2, down // 2, down - down // 2))


def normalise(
    images: Float[Tensor, "*n 3 h w"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "*n 3 h w"]:
    """Subtract each channel's mean and divide by its standard deviation."""
    return (images - images.new_tensor(mean)[:, None, None]) / images.new_tensor(std)[:, None, None]
