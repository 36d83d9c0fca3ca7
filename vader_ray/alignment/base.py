"""Base class of the algorithms that turn the rewards of a step's videos into gradients of the adapter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import torch

from vader_ray.alignment.reward_gradient import RewardOutput, RewardTerm
from vader_ray.alignment.rollout import Batching, Rollout
from vader_ray.config import ExperimentConfig, SamplingConfig, Settings
from vader_ray.errors import UserError
from vader_ray.types import SamplingModel, TrajectoryModel

SettingsT = TypeVar("SettingsT", bound=Settings)


@dataclass(frozen=True, slots=True)
class StepContext:
    """The part of a training step that is the same on all workers."""

    num_videos: int
    """Videos of the step, over all workers."""
    gather: Callable[[Sequence[Any]], list[Any]]
    """All-gather: the items of all workers, ordered by rank, on every worker."""
    generator: torch.Generator
    """Source of the step's random choices that are the same on every worker, such as the truncation depth."""
    algorithm_state: dict[str, list[float]]
    """State of the algorithm between steps, the same on every worker and saved in checkpoints.
    `Algorithm.updates` changes it in place."""


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """Scores and diagnostics of one optimizer update."""

    outputs: Sequence[RewardOutput]
    """Scores of this worker's videos, batch by batch; the same in every update of a step, empty for given
    videos."""
    grad_steps: tuple[int, ...] = ()
    """Indices of the denoising steps through which the reward gradient flowed."""
    metrics: dict[str, list[float]] = field(default_factory=dict)
    """Values of this worker's videos or pairs by metric; the mean over all workers is logged as
    ``train/NAME``."""


@dataclass(frozen=True)
class Algorithm(ABC, Generic[SettingsT]):
    """The algorithm of a recipe; each file of ``alignment/algorithms`` defines one subclass."""

    settings_class: ClassVar[type[Settings]]
    """Options of the algorithm in a recipe."""
    uses_gradient_steps: ClassVar[bool] = False
    """Whether the reward gradient flows through denoising steps; otherwise a recipe that chooses gradient
    steps is refused."""
    group_size: ClassVar[int] = 1
    """Number of consecutive videos that share a prompt; a worker's videos are a multiple of it."""
    calls_depend_on_videos: ClassVar[bool] = False
    """Whether workers with equally many videos may call the denoisers a different number of times or in
    another order; ``runtime.shard`` is then refused."""

    settings: SettingsT
    """The recipe's options, validated."""
    sampling: SamplingConfig
    """The recipe's sampling."""

    @property
    def pairs_file(self) -> str | None:
        """File of given pairs of videos to train on; None samples the videos."""
        return None

    def check(self, config: ExperimentConfig) -> None:
        """Refuse a recipe whose other settings do not fit the algorithm.

        Raises:
            UserError: a setting does not fit; the message names it and the remedy.
        """

    def check_model(self, model: SamplingModel) -> None:
        """Refuse a model that lacks what the algorithm needs.

        Raises:
            UserError: the model does not fit; the message names the remedy.
        """

    @abstractmethod
    def updates(
        self,
        model: SamplingModel,
        terms: Sequence[RewardTerm],
        rollout: Rollout,
        batching: Batching,
        context: StepContext,
    ) -> Iterator[UpdateResult]:
        """Add a gradient to the adapter and yield, once for each optimizer update of the step.

        The gradient is this worker's part of that of the loss over all ``context.num_videos`` videos. Between
        two yields the caller sums the gradients over the workers, updates the adapter and clears them. Calls
        of the denoiser after the last yield are not counted.
        """


def trajectory_model(model: SamplingModel, algorithm: str) -> TrajectoryModel:
    """Return a model that gives log-probabilities and errors of single denoising steps.

    Raises:
        UserError: the model does not; the message names the algorithm that needs it.
    """
    if isinstance(model, TrajectoryModel):
        return model
    raise UserError(
        f"algorithm.name={algorithm} needs log-probabilities and errors of single denoising steps, which "
        f"{type(model).__name__} does not give (vader_ray.types.TrajectoryModel); set algorithm.name=vader"
    )
