"""What the training loop tells the outside: one `StepEvent` per step, received by whoever tracks, stores or shows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vader_ray.training.checkpoint import State


@dataclass(frozen=True, slots=True)
class Query:
    """One reward query: one generated video and all that was asked about it."""

    step: int
    video: int
    """Index of the video over the whole run."""
    prompt: str
    noise_seed: int
    scores: dict[str, float]
    """Reward name → score of the trained rewards."""
    objective: float
    """What the step ascended: the weighted sum of the scores (or of −|score − target|)."""
    grad_steps: tuple[int, ...]
    """Denoising steps that carried gradient, counted from the noisiest, 0."""
    wall_seconds: float
    """Since the start of the run, earlier sessions included."""


@dataclass(frozen=True, slots=True)
class Video:
    """One held-out video of an evaluation."""

    prompt: str
    noise_seed: int
    scores: dict[str, float]
    frames: NDArray[np.uint8]
    """Frames, height, width, 3."""


@dataclass(frozen=True, slots=True)
class StepEvent:
    """The state of a run after `step` optimizer updates; step 0 is the evaluation before training."""

    step: int
    metrics: dict[str, float]
    """Names of conventions.md: ``train/reward_mean``, ``eval/reward/hps``, ``cost/reward_queries`` …"""
    queries: tuple[Query, ...] = ()
    """The reward queries of this step, over all workers."""
    videos: tuple[Video, ...] = field(default=(), repr=False)
    """The held-out videos to be shown, when this step was evaluated."""
    alarms: tuple[str, ...] = ()
    """What the guard says of this step's evaluation."""
    is_kept: bool = False
    """The run can go on from here: on rank 0 there is a checkpoint."""
    checkpoint: Path | None = None
    """A folder that continues the run exactly after this step; the receiver copies or keeps it before it returns."""
    state: State = field(default_factory=State, repr=False)
    """State of the whole run after this step; training changes it later, so a receiver that keeps it makes a copy."""
