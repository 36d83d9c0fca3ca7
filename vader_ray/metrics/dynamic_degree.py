"""VBench's dynamic degree (arXiv 2311.17982): whether a video moves, by optical flow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field

from vader_ray.metrics.core.network import NetworkMetric
from vader_ray.rewards.core.raft import (
    LICENCE,
    NUM_UPDATES,
    WEIGHTS,
    Architecture,
    Raft,
    relative_speeds,
    sized,
)
from vader_ray.types import Frames, Scores
from vader_ray.weights import Source

PAIRS_THAT_MOVE = 4 / 16
"""Share of the frames: a video moves if at least as many pairs of frames do, rounded."""


class DynamicDegreeMetric(NetworkMetric):
    """Whether a video moves, and how fast, by the optical flow of RAFT between frames at 8 per second.

    ``moving`` is VBench's number: 1 for a video of which enough pairs of neighbouring frames have a speed
    above the threshold, else 0. ``speed`` is the mean speed of the pairs in thresholds; as a guard it notices
    motion that fades before ``moving`` does. A single frame does not move.

    Args:
        weights: local file with torchvision's names; by default torchvision's own file, which is downloaded.
        architecture: ``large`` is VBench's network.
        frames_per_second: of the videos; VBench compares frames at 8 per second.
        short_side: reduce frames with a longer short side to it, in pixels, and the threshold with it; VBench
            does not. Frames below RAFT's least side of 128 pixels are enlarged.
        num_updates: iterations of RAFT.
    """

    unit = "moving: 0 or 1; speed: thresholds of VBench, 6 pixels per pair at a short side of 256"
    parts = ("moving", "speed")
    default_weights = WEIGHTS
    licence = LICENCE

    def __init__(
        self,
        *,
        weights: Source | None = None,
        architecture: Architecture = "large",
        frames_per_second: Annotated[float, Field(gt=0)] = 8.0,
        short_side: Annotated[int, Field(ge=128)] | None = None,
        num_updates: Annotated[int, Field(ge=1)] = NUM_UPDATES,
    ) -> None:
        super().__init__()
        self.raft = Raft(weights, architecture, num_updates)
        self.every, self.short_side = max(1, round(frames_per_second / 8)), short_side

    def measure(self, frames: Frames) -> Mapping[str, Scores]:
        """Return whether each video moves, and its speed."""
        frames = sized(frames[:, :: self.every], self.short_side)
        if frames.shape[1] < 2:
            return {part: frames.new_zeros(len(frames)) for part in self.parts}
        height, width = frames.shape[-2:]
        speeds = torch.stack(
            [relative_speeds(self.raft.of_neighbours(video), height, width) for video in frames]
        )
        needed = max(1, round(PAIRS_THAT_MOVE * frames.shape[1]))
        return {
            "moving": ((speeds > 1).sum(dim=1) >= needed).to(speeds.dtype),
            "speed": speeds.mean(dim=1),
        }
