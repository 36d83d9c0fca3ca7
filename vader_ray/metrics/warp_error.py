"""Warp error: what is left of the change between frames after their motion is undone."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from vader_ray.metrics.core.network import NetworkMetric
from vader_ray.rewards.core.raft import (
    LICENCE,
    NUM_UPDATES,
    STRIDE,
    WEIGHTS,
    Architecture,
    Flow,
    Raft,
    sized,
)
from vader_ray.types import Frames, Scores
from vader_ray.weights import Source


class WarpErrorMetric(NetworkMetric):
    """Mean absolute difference of each frame to the next one warped back by the optical flow between them.

    Pixels that are visible in one of the two frames only are left out (arXiv 1808.00449, section 3.3). It
    measures flicker and jumps, as VBench's motion smoothness does by another network, whose licence forbids
    commercial use; the two numbers do not compare. A still video scores 0: watch a measure of motion beside
    it.

    Args:
        weights: local file with torchvision's names; by default torchvision's own file, which is downloaded.
        architecture: of torchvision's RAFT.
        short_side: frames with a longer short side are reduced to it, in pixels.
        num_updates: iterations of RAFT.
    """

    unit = "mean absolute difference after the motion is undone, 0 to 1"
    higher_is_better = False
    default_weights = WEIGHTS
    licence = LICENCE

    def __init__(
        self,
        *,
        weights: Source | None = None,
        architecture: Architecture = "large",
        short_side: Annotated[int, Field(ge=128)] = 256,
        num_updates: Annotated[int, Field(ge=1)] = NUM_UPDATES,
    ) -> None:
        super().__init__()
        self.raft = Raft(weights, architecture, num_updates)
        self.short_side = short_side

    def measure(self, frames: Frames) -> Scores:
        """Return one score per video; 0 for a single frame."""
        if frames.shape[1] < 2:
            return frames.new_zeros(len(frames))
        return torch.stack([self._error(video) for video in sized(frames, self.short_side)])

    def _error(self, video: Float[Tensor, "frames 3 height width"]) -> Float[Tensor, ""]:
        height, width = video.shape[-2:]
        forth = cut(self.raft.of_neighbours(video), height, width)
        back = cut(self.raft.of_neighbours(video.flip(0)).flip(0), height, width)
        difference = (warped(video[1:], forth) - video[:-1]).abs().mean(dim=1)
        visible = is_visible(forth, back)
        return (difference * visible).sum() / visible.sum().clamp_min(1)


def cut(flow: Flow, height: int, width: int) -> Float[Tensor, "pairs 2 height width"]:
    """Return the part of the flow that belongs to the frame and not to its padding."""
    top, left = (-height % STRIDE) // 2, (-width % STRIDE) // 2
    return flow[..., top : top + height, left : left + width]


def warped(images: Float[Tensor, "pairs channels height width"], flow: Flow) -> Tensor:
    """Return, at each pixel, the image at the position to which the flow leads from there (bilinear).

    Outside of the image it is 0.
    """
    height, width = images.shape[-2:]
    rows = torch.arange(height, dtype=flow.dtype, device=flow.device)[:, None]
    columns = torch.arange(width, dtype=flow.dtype, device=flow.device)
    across = 2 * (columns + flow[:, 0]) / (width - 1) - 1
    down = 2 * (rows + flow[:, 1]) / (height - 1) - 1
    return functional.grid_sample(images, torch.stack([across, down], dim=-1), align_corners=True)


def is_visible(forth: Flow, back: Flow) -> Bool[Tensor, "pairs flow_height flow_width"]:
    """Return which pixels of the first frame are visible in the second.

    There the flow back from where a pixel went leads to the pixel again, up to a tolerance that grows with
    the motion (equation 6 of arXiv 1808.00449), and the pixel has not left the frame.
    """
    returned = warped(back, forth)
    apart = (forth + returned).square().sum(dim=1)
    lengths = forth.square().sum(dim=1) + returned.square().sum(dim=1)
    inside = warped(torch.ones_like(forth[:, :1]), forth)[:, 0] > 1 - 1e-3
    return (apart < 0.01 * lengths + 0.5) & inside
