"""How fast things move: optical flow by Lucas and Kanade (IJCAI 1981), in plain operations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from vader_ray.rewards.brightness import LUMINANCE
from vader_ray.types import Frames, Granularity, Scores

SMOOTHING = (1.0, 4.0, 6.0, 4.0, 1.0)
"""Binomial filter (σ = 1 pixel) before differences are taken."""
WINDOW = 7
"""Side in pixels of the window in which all is taken to move alike."""
NOISE = 5e-5
"""Mean squared gradient, in luminance² per pixel², under which a direction counts as flat and its flow fades to 0."""
STILL = 1e-3
"""Pixels per frame; rounds the tip of |flow| so that a still video has a gradient of 0 and not of NaN."""


class Reward:
    """The mean length of the optical flow, over pixels and pairs of neighbouring frames.

    Flow and not frame difference, as a difference also rises with flicker and contrast and has no unit of motion. Windows without
    texture count as still, and so does motion along an edge: of a small object on a flat ground the score is its speed times
    about the share of the frame that its outline touches. Measured (tests): on moving patterns of waves of 8 to 20 pixels within
    30 % up to 1 pixel per frame and 35 % at 2 (what moves by half its own wave cannot be told from motion backwards); on still
    videos of the shapes data set with 20 % of flicker less than a sixth of what moving ones score. The prompts have no influence.
    """

    granularity: Granularity = "clip"
    unit = "pixels per frame, 0 still"
    default_weights = ""
    licence = ""

    def __call__(self, frames: Frames, prompts: Sequence[str], /) -> Scores:
        """One score per video.

        Raises:
            ValueError: a single frame has no motion.
        """
        if frames.shape[1] < 2:
            raise ValueError(
                "motion compares neighbouring frames and got 1; give the reward at least 2 (setting frames)"
            )
        speed = (flow(frames).square().sum(dim=2) + STILL**2).sqrt() - STILL
        return speed.mean(dim=(1, 2, 3))


def flow(frames: Frames) -> Float[Tensor, "batch pairs 2 height width"]:
    """Displacement in pixels (right, down) of each neighbourhood from each frame to the next.

    The least-squares solution of ∂x·u + ∂y·v + c = −∂t over a window, in closed form, where c takes up a change of brightness.
    The gradients are those of the mean of the two frames: the error of the linearisation is of third order in the displacement.
    """
    grey = torch.einsum("bfchw,c->bfhw", frames, frames.new_tensor(LUMINANCE))
    grey = _filtered(grey, _kernel(grey))
    middle, change = (grey[:, 1:] + grey[:, :-1]) / 2, grey[:, 1:] - grey[:, :-1]
    padded = functional.pad(middle, (1, 1, 1, 1), mode="replicate")
    across = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    xx, yy = _covariance(across, across) + NOISE, _covariance(down, down) + NOISE
    xy, xt, yt = _covariance(across, down), _covariance(across, change), _covariance(down, change)
    determinant = xx * yy - xy**2
    return torch.stack([xy * yt - yy * xt, xy * xt - xx * yt], dim=2) / determinant[:, :, None]


def _covariance(
    one: Float[Tensor, "batch pairs height width"], other: Float[Tensor, "batch pairs height width"]
) -> Float[Tensor, "batch pairs height width"]:
    """Over the window around each pixel."""
    window = one.new_full((WINDOW,), 1 / WINDOW)
    return _filtered(one * other, window) - _filtered(one, window) * _filtered(other, window)


def _kernel(like: Tensor) -> Float[Tensor, " taps"]:
    weights = like.new_tensor(SMOOTHING)
    return weights / weights.sum()


def _filtered(
    images: Float[Tensor, "batch pairs height width"], kernel: Float[Tensor, " taps"]
) -> Float[Tensor, "batch pairs height width"]:
    """Filtered along both axes, the border repeated."""
    half = len(kernel) // 2
    padded = functional.pad(images, (half, half, half, half), mode="replicate")
    rows = functional.conv2d(padded.flatten(0, 1)[:, None], kernel.view(1, 1, -1, 1))
    return functional.conv2d(rows, kernel.view(1, 1, 1, -1))[:, 0].view(images.shape)
