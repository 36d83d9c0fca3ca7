"""One trial of a sweep, inside a process of Ray Tune: a run of its recipe that tells Tune how its evaluations went.

With one worker the training loop runs right here; with more, this process is the driver of Ray Train workers.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from ray import tune

from vader_ray import config as settings
from vader_ray.config import ExperimentConfig
from vader_ray.errors import RunFailed
from vader_ray.orchestration.clusters.preemption import is_preempted
from vader_ray.orchestration.reward_service.pool import PooledReward
from vader_ray.orchestration.runs.launch import build_summary, fit, remembered
from vader_ray.orchestration.runs.run_dir import RunDir, working_copy, write_json
from vader_ray.orchestration.runs.worker import train_recorded
from vader_ray.orchestration.sweeps.search import SELECTED
from vader_ray.orchestration.tracking import mlflow_runs
from vader_ray.training.distributed import WorkerGroup
from vader_ray.training.events import StepEvent
from vader_ray.training.inference import adopting
from vader_ray.training.model_cache import ModelCache
from vader_ray.training.step import TrainingError

QUERIES = "reward_queries"
"""What Tune hears of an evaluation beside `SELECTED`: reward queries so far."""

LONGEST_TAG = 1000
"""Characters of a trial's error in MLflow."""

_CACHE = ModelCache()
"""Of this process, in which Tune runs one trial after another."""

Ending = dict[str, str]
"""``{"status": "completed" | "stopped" | "failed"}``, and ``error`` where there was one. Stopped is: by the scheduler, or by
the guard, which leaves a ``reason`` in the summary."""


def run_trial(
    chosen: dict[str, Any], served: Mapping[str, PooledReward], use_gpu: bool, kept_elsewhere: tuple[str, ...]
) -> None:
    """Run or continue the trial in the chosen folder; whatever its settings cannot do ends it as failed, with the reason.

    Other errors are raised: they may be a lost process, which Tune replaces, and the trial goes on from its checkpoint.

    Args:
        chosen: ``folder`` and ``storage`` of the trial.
        kept_elsewhere: names of folders in it that this process does not copy.
    """
    with working_copy(chosen["folder"], chosen["storage"], skip=kept_elsewhere) as folder:
        last = _run_in(folder, served, use_gpu)
        folder.push()
    if last is not None:
        tune.report(last)


def _run_in(folder: RunDir, served: Mapping[str, PooledReward], use_gpu: bool) -> dict[str, Any] | None:
    """Train and write the summary; what Tune is to be told last, when all results are in their place."""
    config, run = settings.load(str(folder.recipe)), remembered(folder)
    state, held = read_state(folder), list[dict[str, Any]]()

    def follow(report: StepEvent) -> None:
        state.update(advanced(state, report))
        write_json(folder.state, state)
        if report.checkpoint is not None or config.selection_metric() in report.metrics:
            folder.push()
        if (selected := report.metrics.get(config.selection_metric())) is not None:
            told = {QUERIES: state["reward_queries"], SELECTED: selected}
            if report.step == config.num_steps or (report.alarms and config.guard.action == "stop"):
                held.append(told)
            else:
                tune.report(told)  # Tune may end this process here

    try:
        if config.runtime.num_workers == 1:
            final = _train_here(config, folder, run, served, use_gpu, follow)
        else:
            final = fit(config, folder, run, served, show=follow, tell=print)
    except (TrainingError, RunFailed, ValueError, OSError) as error:
        end_trial(config, folder, run, state, {"status": "failed", "error": str(error)})
        return None
    end_trial(config, folder, run, final, {"status": "stopped" if final["stopped"] else "completed"})
    return held[-1] if held else None


def end_trial(
    config: ExperimentConfig,
    folder: RunDir,
    run: mlflow_runs.MlflowRun,
    state: dict[str, Any],
    ending: Ending,
) -> None:
    """End the trial's MLflow run and write its summary, last, for a trial with a summary is not repeated."""
    status: mlflow_runs.Status = "FAILED" if ending["status"] == "failed" else "FINISHED"
    tags = {name: value[:LONGEST_TAG] for name, value in ending.items()}
    line = mlflow_runs.end_run(run.uri, run.run_id, status, folder=folder.path, tags=tags)
    if line:
        print(line)
    write_json(folder.summary, build_summary(config, folder, run, state, ending["status"]) | ending)


def read_state(folder: RunDir) -> dict[str, Any]:
    """What the reports of a trial have told so far, empty for a new one."""
    return json.loads(folder.state.read_text(encoding="utf-8")) if folder.state.exists() else {}


def advanced(state: dict[str, Any], report: StepEvent) -> dict[str, Any]:
    """The state of a run, as far as its reports tell it, after one more report."""
    metrics = report.metrics
    told: dict[str, Any] = {
        "step": report.step,
        "reward_queries": int(metrics["cost/reward_queries"]),
        "denoiser_calls": int(metrics["cost/denoiser_calls"]),
        "train_seconds": metrics["cost/train_seconds"],
        "gpu_hours": metrics.get("cost/gpu_hours", 0.0),
        "wall_seconds": metrics["cost/wall_seconds"],
    }
    evaluated = {name: value for name, value in metrics.items() if name.startswith("eval/")}
    if evaluated:
        told |= {"last_metrics": evaluated, "best_step": int(evaluated["eval/best_step"])}
        if told["best_step"] == report.step:
            told["best_metrics"] = evaluated
    if report.step == 0:
        told["before_metrics"] = evaluated
    if report.alarms:
        told["alarms"] = [*state.get("alarms", []), *report.alarms]
    return state | told


def _train_here(
    config: ExperimentConfig,
    folder: RunDir,
    run: mlflow_runs.MlflowRun,
    served: Mapping[str, PooledReward],
    use_gpu: bool,
    follow: Callable[[StepEvent], None],
) -> dict[str, Any]:
    def announce(report: StepEvent) -> None:
        if report.checkpoint is not None:
            _keep(report.checkpoint, folder.checkpoints, report.step)
        follow(report)

    kept = sorted(
        state.parent for state in folder.checkpoints.glob("step-*/state.json")
    )  # copied last, so the others are there
    costs = folder.given / "costs.json"  # a mix: nothing is to be trained
    given = (
        {"train_step": adopting(folder.given / "adapter", json.loads(costs.read_text()))}
        if costs.exists()
        else {}
    )
    state = train_recorded(
        config,
        folder,
        run,
        group=WorkerGroup(),
        device=torch.device("cuda" if use_gpu else "cpu"),
        resume_from=kept[-1] if kept else None,
        served=served,
        announce=announce,
        tell=print,
        cache=_CACHE,
        should_checkpoint=is_preempted,
        **given,
    )
    assert state is not None, "the only worker is rank 0"
    return state


def _keep(checkpoint: Path, root: Path, step: int) -> None:
    """Keep a checkpoint in place of the earlier ones; whenever this is killed, the latest in ``root`` is whole."""
    unfinished = root / "unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(checkpoint, unfinished)
    earlier = list(root.glob("step-*"))
    os.replace(unfinished, root / f"step-{step:08d}")
    for path in earlier:
        shutil.rmtree(path)
