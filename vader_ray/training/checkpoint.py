"""Checkpoints: folders with all that an exact continuation needs.

``adapter/`` and ``best_adapter/`` in the model's own adapter format, ``optimizer.pt``, ``state.json``, and
``base.pt``: the features of the base model's held-out videos for the metrics that compare with them. With
``optimizer.ema_decay``, ``adapter/`` has the averaged weights and ``raw_adapter/`` those that are trained.
``manifest.json`` has the SHA-256 of every other file. A checkpoint is written under another name and renamed,
so a folder with the final name is complete.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from vader_ray.errors import UserError, first_line
from vader_ray.files import atomic_write
from vader_ray.manifest import find_damage, write_manifest
from vader_ray.training.optimizer import AdapterOptimizer
from vader_ray.types import SamplingModel


@dataclass(slots=True)
class State:
    """Progress, costs and evaluations of a run: all of its state but adapter and optimizer."""

    step: int = 0
    """Training steps taken."""
    reward_queries: int = 0
    """Training videos that were scored, over all workers."""
    denoiser_calls: int = 0
    """Forward passes of the denoiser in training, per video and guidance branch, over all workers;
    recomputations are not counted."""
    train_seconds: float = 0.0
    """Wall-clock seconds of the training steps, without loading and evaluations."""
    worker_seconds: float = 0.0
    """``train_seconds`` summed over the workers."""
    gpu_hours: float = 0.0
    """``worker_seconds`` in hours on GPUs, 0 on CPUs."""
    wall_seconds: float = 0.0
    """Wall-clock seconds of the run, evaluations and earlier sessions included."""
    nonfinite_steps: int = 0
    """Steps that were skipped because their gradient was not finite."""
    nonfinite_in_a_row: int = 0
    """Number of latest steps in a row that were skipped."""
    best_step: int = 0
    """Step of the best adapter."""
    best_metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of the evaluation of the best adapter."""
    before: dict[str, list[float]] = field(default_factory=dict)
    """Score of every held-out video before training, by reward."""
    before_prompts: dict[str, list[float]] = field(default_factory=dict)
    """Value of every held-out prompt before training, by logged name of each reward."""
    before_metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of the evaluation before training."""
    last_metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of the last evaluation."""
    test_metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of the test, ``test/…``; empty before it and without test prompts."""
    test_prompt_gains: dict[str, list[float]] = field(default_factory=dict)
    """Gain of every test prompt, by logged name (``eval/…``); empty before the test."""
    guard_values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Value of every held-out prompt in the evaluations with which the guard compares later ones, by metric
    and by step."""
    guard_spent: float = 0.0
    """Part of the guard's false-alarm rate that the evaluations so far have spent."""
    guard_beyond: list[str] = field(default_factory=list)
    """Metrics for which the guard fired in the last evaluation."""
    alarms: list[str] = field(default_factory=list)
    """Messages of the guard."""
    stopped: str = ""
    """Message with which the guard ended the run; empty while it goes on."""
    algorithm_state: dict[str, list[float]] = field(default_factory=dict)
    """State of the algorithm between steps (DDPO: the latest rewards of each prompt)."""


def save(
    folder: Path,
    state: State,
    model: SamplingModel,
    optimizer: AdapterOptimizer,
    best_adapter: Path,
    base: Mapping[str, Tensor],
) -> Path:
    """Write a checkpoint; the folder appears complete or not at all.

    Args:
        base: features of the base model's held-out videos, by metric.

    Raises:
        OSError: the disk is full or the folder cannot be written; an earlier checkpoint in it stays.
    """
    with atomic_write(folder) as unfinished:
        unfinished.mkdir()
        with optimizer.averaged_weights():
            model.save_adapter(unfinished / "adapter")
        if optimizer.is_averaged:
            model.save_adapter(unfinished / "raw_adapter")
        shutil.copytree(best_adapter, unfinished / "best_adapter")
        torch.save(optimizer.state_dict(), unfinished / "optimizer.pt")
        torch.save(dict(base), unfinished / "base.pt")
        (unfinished / "state.json").write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")
        write_manifest(unfinished, [path for path in unfinished.rglob("*") if path.is_file()])
    return folder


def verify(folder: Path, name: str | None = None) -> None:
    """Check that every file of a checkpoint is there with the bytes that were written.

    Args:
        name: name of the checkpoint for messages, by default its folder; a copy has another folder.

    Raises:
        UserError: names the checkpoint and the first file that is missing or damaged.
    """
    if (damage := find_damage(folder)) is not None:
        raise UserError(f"{name or folder} is not a complete checkpoint: {damage}")


def choose_undamaged(checkpoints: Iterable[tuple[str, Path]], log: Callable[[str], None]) -> Path | None:
    """Return the folder of a run's latest undamaged checkpoint; None if there are none at all.

    Args:
        checkpoints: name and folder of each, latest first.
        log: receives one message for each damaged one.

    Raises:
        UserError: all are damaged.
    """
    damaged: UserError | None = None
    for name, folder in checkpoints:
        try:
            verify(folder, name)
        except UserError as error:
            log(f"{error}; the run continues from the checkpoint before it, if there is one")
            damaged = error
        else:
            return folder
    if damaged is not None:
        raise UserError(f"{damaged}, and there is no earlier one; start the run again under another name")
    return None


def restore(
    folder: Path, model: SamplingModel, optimizer: AdapterOptimizer
) -> tuple[State, dict[str, Tensor]]:
    """Load adapter and optimizer; return the state of the run, and the features of the base model's videos.

    Raises:
        UserError: the folder is no checkpoint, a damaged one, or one of another model.
    """
    verify(folder)
    try:
        state = State(**json.loads((folder / "state.json").read_text(encoding="utf-8")))
        saved, base = (
            torch.load(folder / name, weights_only=True, map_location="cpu")
            for name in ("optimizer.pt", "base.pt")
        )
    except (OSError, json.JSONDecodeError, TypeError, RuntimeError, EOFError) as error:
        raise UserError(f"{folder} is not a checkpoint of this version ({first_line(error)})") from None
    model.load_adapter(folder / "adapter")
    optimizer.load_state_dict(saved)
    if (raw := folder / "raw_adapter").exists():
        model.load_adapter(raw)
    return state, base
