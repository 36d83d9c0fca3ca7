"""Soft dynamic degree: VBench's count of moving pairs of frames (arXiv 2311.17982), made differentiable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field

from vader_ray.errors import UserError
from vader_ray.rewards.base import NetworkReward
from vader_ray.rewards.core.raft import (
    LICENCE,
    NUM_UPDATES,
    WEIGHTS,
    Architecture,
    Raft,
    flow_size,
    relative_speeds,
    sized,
)
from vader_ray.rewards.core.resizing import Resizing, whole
from vader_ray.types import Frames, Granularity, Scores
from vader_ray.weights import Source


class OpticalFlowReward(NetworkReward):
    """The mean over pairs of neighbouring frames of sigmoid((speed − threshold) / softness).

    Speed and threshold are those of VBench's dynamic degree: the mean of the largest 5 % of the optical flow
    by RAFT, against 6 pixels at a short side of 256. The score is between 0 and 1 and rises little above the
    threshold, so that jitter cannot raise it without bound; a still video scores 0.02. The prompts have no
    influence.

    Args:
        weights: local file with torchvision's names; by default torchvision's own file, which is downloaded.
        architecture: ``large`` is VBench's network; ``small`` needs less memory.
        softness: width of the sigmoid, in thresholds.
        every: compare each n-th frame. VBench compares frames at 8 per second: 2 at 16 frames per second.
        short_side: frames with a longer short side are reduced to it, in pixels; memory grows with its fourth
            power. The threshold is reduced with it. Frames below RAFT's least side of 128 pixels are
            enlarged.
        num_updates: iterations of RAFT. After more than one the gradient is that of the paper, which does not
            flow through positions.
    """

    granularity: Granularity = "clip"
    unit = "soft share of moving pairs of frames, 0 to 1"
    default_weights = WEIGHTS
    licence = LICENCE

    def __init__(
        self,
        *,
        weights: Source | None = None,
        architecture: Architecture = "large",
        softness: Annotated[float, Field(gt=0)] = 0.25,
        every: Annotated[int, Field(ge=1)] = 1,
        short_side: Annotated[int, Field(ge=128)] = 256,
        num_updates: Annotated[int, Field(ge=1)] = NUM_UPDATES,
    ) -> None:
        super().__init__()
        self.raft = Raft(weights, architecture, num_updates)
        self.softness, self.every, self.short_side = softness, every, short_side

    def resizing(self, height: int, width: int) -> Resizing:
        """Return frames of the size at which the flow is computed."""
        return whole(*flow_size(height, width, self.short_side))

    def score(self, frames: Frames, prompts: Sequence[str], /) -> Scores:
        """Return one score per video.

        Raises:
            UserError: fewer than two frames are compared.
        """
        frames = sized(frames[:, :: self.every], self.short_side)
        if frames.shape[1] < 2:
            raise UserError(
                "optical_flow compares neighbouring frames and got 1; set the reward's frames and every so "
                "that at least 2 are left"
            )
        height, width = frames.shape[-2:]
        speeds = [relative_speeds(self.raft.of_neighbours(video), height, width) for video in frames]
        return ((torch.stack(speeds) - 1) / self.softness).sigmoid().mean(dim=1)
