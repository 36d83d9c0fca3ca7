"""Runs of the command line in processes of their own: start, watch, kill, and read what they leave."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from tests.helpers.local_run import run_locally
from vader_ray.config import ExperimentConfig
from vader_ray.orchestration.runs.run_dir import RunDir, open_run_dir
from vader_ray.orchestration.tracking import mlflow_runs
from vader_ray.orchestration.tracking.address import MlflowRun
from vader_ray.training.events import StepEvent

CLI = str(Path(sys.executable).parent / "vader-ray")
SMALL_RUN = (
    "num_steps=1",
    "evaluation.num_videos=2",
    "evaluation.num_test_videos=2",
    "evaluation.every=1",
    "expected_metrics={}",
)
"""Settings with which a packaged recipe takes seconds."""


def start(
    command: Sequence[str], folder: Path, log: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start a command in `folder` as the leader of its own session; its output is appended to `log`."""
    with log.open("a") as file:
        return subprocess.Popen(
            list(command),
            cwd=folder,
            stdout=file,
            stderr=file,
            text=True,
            start_new_session=True,
            env=environment,
        )


def kill_driver(process: subprocess.Popen[str]) -> None:
    """Kill a driver with SIGKILL, as a lost machine would, and wait until the Ray processes below it have
    left."""
    below = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    _, left = psutil.wait_procs(below, timeout=120)
    assert not left, "Ray's processes did not notice that their driver is gone"


def tracked_step(database: Path, run: Path) -> int:
    """The last step that MLflow has of a run, read from the database while the run goes on; -1 before the
    first."""
    if not (run / "run.json").exists() or not database.exists():
        return -1
    run_id = json.loads((run / "run.json").read_text()).get("mlflow_run_id", "")
    query = "SELECT max(step) FROM metrics WHERE run_uuid = ? AND key = 'cost/reward_queries'"
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)
    try:
        (step,) = connection.execute(query, (run_id,)).fetchone()
    finally:
        connection.close()
    return -1 if step is None else int(step)


def checkpoint_states(checkpoints: Path) -> list[dict[str, float]]:
    """``state.json`` of a run's checkpoints, by step."""
    texts = (path.read_text() for path in checkpoints.glob("checkpoint_*/state.json"))
    states: list[dict[str, float]] = [json.loads(text) for text in texts if text]  # one may be on its way
    return sorted(states, key=lambda state: state["step"])


def checkpoint_step(checkpoints: Path) -> int:
    """The step of a run's last checkpoint; -1 without one."""
    states = checkpoint_states(checkpoints)
    return int(states[-1]["step"]) if states else -1


def adapter_files(run: Path) -> dict[str, bytes]:
    """The files of a run's last and best adapter."""
    return {
        f"{part}/{path.name}": path.read_bytes()
        for part in ("adapter", "best_adapter")
        for path in (run / part).iterdir()
    }


def open_here(
    config: ExperimentConfig, root: Path, name: str, storage: str | None = None
) -> tuple[RunDir, MlflowRun]:
    """Open a run, or an earlier one again, as its driver does."""
    folder = open_run_dir(config, root, name, storage=storage)
    known_run_id = folder.read_metadata().get("mlflow_run_id")
    run = mlflow_runs.start_run(config, name, folder.recipe.read_text(), resume_run_id=known_run_id)
    folder.write_metadata(config, run)
    folder.push()
    return folder, run


def train_here(
    config: ExperimentConfig,
    root: Path,
    name: str,
    storage: str | None = None,
    on_step: Callable[[StepEvent], None] = lambda event: None,
) -> tuple[RunDir, MlflowRun]:
    """Train in this process, without Ray; the run's folder in `root` and its open MLflow run."""
    folder, run = open_here(config, root, name, storage)
    run_locally(config, folder, run, on_step)
    return folder, run


def record(config: ExperimentConfig, folder: Path, name: str, storage: str | None = None) -> None:
    """Train in this process, and record the run in `folder` and in MLflow as a worker does."""
    runs, run = train_here(config, folder / "runs", name, storage)
    tags = {"status": "completed"}
    assert mlflow_runs.end_run(run.uri, run.run_id, "FINISHED", folder=runs.path, tags=tags) is None
