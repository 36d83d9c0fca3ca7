"""What every algorithm is: how the videos of a step and their rewards become gradients of the adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from vader_ray.alignment.reward_gradient import RewardOutput, RewardTerm
from vader_ray.alignment.rollout import Batching, Rollout
from vader_ray.types import VideoModel


@dataclass(frozen=True, slots=True)
class StepContext:
    """The step of which this worker does a share."""

    num_videos: int
    """On all workers."""
    gather: Callable[[Sequence[Any]], list[Any]]
    """The items of all workers, by rank, on every worker."""
    memory: dict[str, list[float]]
    """What an algorithm remembers of earlier steps, the same on every worker; it is part of the checkpoint."""


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """What was learnt on the way to one optimizer update."""

    scored: Sequence[RewardOutput]
    """What the rewards said of this worker's videos; the same in every update of a step."""
    grad_steps: tuple[int, ...]
    """Denoising steps that carried gradient."""
    measures: dict[str, list[float]] = field(default_factory=dict)
    """Metric ``train/NAME`` → values of this worker's videos or pairs, of which the mean over all workers is reported."""


class Algorithm(Protocol):
    """One file of this folder is one of these."""

    def updates(
        self,
        model: VideoModel,
        terms: Sequence[RewardTerm],
        rollout: Rollout,
        batching: Batching,
        whole: StepContext,
    ) -> Iterator[UpdateResult]:
        """Yields once for each optimizer update of a step, when this worker's share of its gradient has been added.

        The caller sums the gradients over the workers, updates the adapter and clears them before it goes on.
        """
        ...
