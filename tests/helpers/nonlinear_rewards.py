"""Rewards without a network whose gradient is nowhere constant, and weighted terms of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vader_ray.alignment.reward_gradient import RewardTerm
from vader_ray.types import Frames, Granularity, RemoteReward, Scores


class FrameReward:
    """Nonlinear within a frame, mean over frames, different for each prompt."""

    granularity: Granularity = "frame"
    unit = "none"

    def __call__(self, frames: Frames, prompts: Sequence[str]) -> Scores:
        signs = torch.tensor([1.0 + len(prompt) for prompt in prompts], dtype=frames.dtype)
        return signs * torch.sin(3 * frames).square().mean(dim=(2, 3, 4)).mean(dim=1)


class ClipReward:
    """Couples the frames nonlinearly."""

    granularity: Granularity = "clip"
    unit = "none"

    def __call__(self, frames: Frames, prompts: Sequence[str]) -> Scores:
        return -(frames[:, 1:] * frames[:, :-1]).mean(dim=(1, 2, 3, 4)).exp()


REWARD_TERMS = {
    "frame": [RewardTerm("frame", FrameReward())],
    "clip": [RewardTerm("clip", ClipReward())],
    "mix": [
        RewardTerm("frame", FrameReward(), weight=0.7),
        RewardTerm("clip", ClipReward(), weight=-2.0, target=0.3),
    ],
}


def objective_of(terms: Sequence[RewardTerm], frames: Frames, prompts: Sequence[str]) -> Tensor:
    """Sum of the terms of each video, from the whole video at once."""
    values = []
    for term in terms:
        assert not isinstance(term.reward, RemoteReward)
        values.append(term.value(term.reward(frames, prompts)))
    return torch.stack(values).sum(dim=0)
