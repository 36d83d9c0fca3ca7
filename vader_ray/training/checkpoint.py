"""Checkpoints: a folder that holds everything an exact continuation needs.

``adapter/`` and ``best_adapter/`` in the model's own adapter format, ``optimizer.pt``, ``state.json``, and ``base.pt``: the
base model's held-out videos as thumbnails. A checkpoint is written beside its final name and renamed, so a folder with the
final name is whole.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from vader_ray.files import atomic_write
from vader_ray.types import VideoModel


@dataclass(slots=True)
class State:
    """What a run has done so far, beside adapter and optimizer."""

    step: int = 0
    reward_queries: int = 0
    denoiser_calls: int = 0
    train_seconds: float = 0.0
    """Of the steps alone."""
    worker_seconds: float = 0.0
    """`train_seconds` added up over the workers."""
    gpu_hours: float = 0.0
    """`worker_seconds` in hours on GPUs, 0 on CPUs."""
    wall_seconds: float = 0.0
    """Evaluations and earlier sessions included."""
    nonfinite_steps: int = 0
    nonfinite_in_a_row: int = 0
    best_step: int = 0
    best_metrics: dict[str, float] = field(default_factory=dict)
    """Of the evaluation whose adapter is kept."""
    before: dict[str, list[float]] = field(default_factory=dict)
    """Scores of the held-out videos before training."""
    before_metrics: dict[str, float] = field(default_factory=dict)
    last_metrics: dict[str, float] = field(default_factory=dict)
    """Of the last evaluation."""
    guard_reference: dict[str, list[float]] = field(default_factory=dict)
    """Per guarded measure, the values that it is compared with."""
    guard_reference_step: dict[str, int] = field(default_factory=dict)
    guard_over: dict[str, list[int]] = field(default_factory=dict)
    """Per guarded measure, the steps of the last evaluations in a row that were beyond the bound."""
    alarms: list[str] = field(default_factory=list)
    """What the guard has said."""
    stopped: str = ""
    """Why the guard ended the run."""
    memory: dict[str, list[float]] = field(default_factory=dict)
    """The algorithm's, of earlier steps."""


def save(
    folder: Path,
    state: State,
    model: VideoModel,
    optimizer: torch.optim.Optimizer,
    best_adapter: Path,
    base: Tensor,
) -> Path:
    """Write a checkpoint; the folder appears whole or not at all.

    Raises:
        OSError: the disk is full or the folder cannot be written; what was there before stays.
    """
    with atomic_write(folder) as unfinished:
        unfinished.mkdir()
        model.save_adapter(unfinished / "adapter")
        shutil.copytree(best_adapter, unfinished / "best_adapter")
        torch.save(optimizer.state_dict(), unfinished / "optimizer.pt")
        torch.save(base, unfinished / "base.pt")
        (unfinished / "state.json").write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")
    return folder


def restore(folder: Path, model: VideoModel, optimizer: torch.optim.Optimizer) -> tuple[State, Tensor]:
    """Put adapter and optimizer back; the state of the run, and the base model's thumbnails.

    Raises:
        ValueError: the folder is no checkpoint, or one of another model.
    """
    try:
        state = State(**json.loads((folder / "state.json").read_text(encoding="utf-8")))
        saved, base = (
            torch.load(folder / name, weights_only=True, map_location="cpu")
            for name in ("optimizer.pt", "base.pt")
        )
    except (OSError, json.JSONDecodeError, TypeError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{folder} is not a whole checkpoint ({type(error).__name__}: {error}); continue from an earlier one"
        ) from None
    model.load_adapter(folder / "adapter")
    optimizer.load_state_dict(saved)
    return state, base
