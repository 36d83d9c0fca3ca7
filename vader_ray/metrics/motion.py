"""Motion: the mean optical flow of a video, as the reward `vader_ray.rewards.motion` measures it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vader_ray.rewards.motion import MotionReward
from vader_ray.types import Frames, Scores


class MotionMetric:
    """Mean length of the optical flow over pixels and pairs of neighbouring frames; 0 for a single frame."""

    unit = "pixels per frame, 0 still"
    higher_is_better = True
    parts: tuple[str, ...] = ()

    def __call__(self, frames: Frames, prompts: Sequence[str], /) -> Scores:
        """Return the mean flow of each video in pixels per frame."""
        pixels = frames.float()
        if frames.shape[1] < 2:
            return pixels.new_zeros(len(frames))
        reward = MotionReward()
        # the flow of all pairs at once would need several times the memory of the frames
        speeds = [reward(pixels[:, first : first + 2], prompts) for first in range(frames.shape[1] - 1)]
        return torch.stack(speeds).mean(dim=0)
