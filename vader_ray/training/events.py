"""Events of the training loop: one `StepEvent` per step, for tracking, storage and display."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vader_ray.training.checkpoint import State


@dataclass(frozen=True, slots=True)
class RewardQuery:
    """One reward query: the scores of one generated training video."""

    step: int
    """Training step, counted from 1."""
    video: int
    """Index of the video over the whole run."""
    prompt: str
    """Text of the prompt."""
    noise_seed: int
    """Seed of the video's initial noise."""
    scores: dict[str, float]
    """Score of each trained reward, by name."""
    objective: float
    """Objective of the video: the weighted sum of its scores (or of −|score − target|)."""
    grad_steps: tuple[int, ...]
    """Indices of the gradient steps; the noisiest denoising step is 0."""
    wall_seconds: float
    """Seconds since the start of the run, earlier sessions included."""


@dataclass(frozen=True, slots=True)
class Video:
    """One held-out video of an evaluation."""

    prompt: str
    """Text of the prompt."""
    noise_seed: int
    """Seed of the video's initial noise, the same in every evaluation."""
    scores: dict[str, float]
    """Score of each trained and held-out reward, by name."""
    frames: NDArray[np.uint8]
    """Pixels in 0…255, ``frames height width 3``."""


@dataclass(frozen=True, slots=True)
class StepEvent:
    """The results of one training step; step 0 is the evaluation before training. The test at the end has an
    event of its own."""

    step: int
    """Number of training steps taken."""
    metrics: dict[str, float]
    """Numbers to log, by name: ``train/reward_mean``, ``eval/reward/hps``, ``cost/reward_queries`` …"""
    queries: tuple[RewardQuery, ...] = ()
    """The reward queries of this step, over all workers."""
    videos: tuple[Video, ...] = field(default=(), repr=False)
    """The held-out videos that are shown, if this step was evaluated."""
    alarms: tuple[str, ...] = ()
    """Messages of the guard about this step's evaluation."""
    is_kept: bool = False
    """Whether the run can continue from here: worker 0 has a checkpoint."""
    checkpoint: Path | None = None
    """Checkpoint of this step, on worker 0. The receiver copies it before it returns."""
    state: State = field(default_factory=State, repr=False)
    """State of the run after this step. Training changes it later: the receiver uses it before it returns."""

    @property
    def is_test(self) -> bool:
        """Whether the event is that of the test at the end, after the last step."""
        return any(name.startswith("test/") for name in self.metrics)
