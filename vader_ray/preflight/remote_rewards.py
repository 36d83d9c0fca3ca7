"""Rewards in other processes, for an estimate: they take no memory here, and their frames are counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vader_ray import rewards
from vader_ray.config import ExperimentConfig
from vader_ray.types import Frames, Granularity, RemoteReward, Scores


@dataclass(frozen=True, slots=True)
class _ZeroFuture:
    """The result of a reward that takes no memory here: zeros."""

    frames: Frames

    def result(self) -> Scores:
        return self.frames.new_zeros(len(self.frames))


@dataclass(frozen=True, slots=True)
class _ZeroGradientFuture:
    frames: Frames

    def result(self) -> tuple[Scores, Frames]:
        return self.frames.new_zeros(len(self.frames)), torch.zeros_like(self.frames)


@dataclass(slots=True)
class CountedReward:
    """A remote reward: the estimate includes the frames that are sent and the gradient that is received."""

    granularity: Granularity
    unit: str
    bytes_per_number: int
    """Bytes of one number on the network."""
    num_bytes: int = 0
    """Bytes of all frames and gradients so far; whole frames, though a reward may need a region only."""

    def submit_scores(self, frames: Frames, prompts: Sequence[str], chunk_size: int, /) -> _ZeroFuture:
        self.num_bytes += frames.numel() * self.bytes_per_number
        return _ZeroFuture(frames)

    def submit_gradient(
        self, frames: Frames, prompts: Sequence[str], chunk_size: int, /
    ) -> _ZeroGradientFuture:
        self.num_bytes += 2 * frames.numel() * self.bytes_per_number
        return _ZeroGradientFuture(frames)


def counted_rewards(config: ExperimentConfig) -> dict[str, CountedReward]:
    """Return the recipe's rewards in other processes, by name."""
    found = dict[str, CountedReward]()
    for spec in (*config.rewards, *config.eval_rewards):
        if spec.placement is not None:
            kind: type[RemoteReward] = rewards.resolve(spec.reward)  # type: ignore[assignment]
            size = getattr(torch, spec.placement.transport).itemsize
            found[spec.name] = CountedReward(kind.granularity, kind.unit, size)
    return found
