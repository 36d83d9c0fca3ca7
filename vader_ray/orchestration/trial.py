"""One trial of a sweep, inside a process of Ray Tune: a run of its recipe that tells Tune how its evaluations went.

With one worker the training loop runs right here; with more, this process is the driver of Ray Train workers.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ray import tune

from vader_ray import config as settings
from vader_ray.config import ExperimentConfig
from vader_ray.orchestration import tracking
from vader_ray.orchestration.errors import RunFailed
from vader_ray.orchestration.folder import RunFolder, write_json
from vader_ray.orchestration.run import fit, summarise
from vader_ray.orchestration.served import PooledReward
from vader_ray.orchestration.worker import train_recorded
from vader_ray.training.group import Group
from vader_ray.training.report import Report
from vader_ray.training.step import TrainingError

QUERIES, SELECTED = "reward_queries", "selected"
"""What Tune hears of an evaluation: reward queries so far, and the metric by which the recipe chooses."""

Ending = dict[str, str]
"""``{"status": "completed" | "stopped" | "failed"}``, and ``error`` where there was one. Stopped is: by the scheduler."""


@dataclass(frozen=True)
class Job:
    """All that a trial needs, made by the driver of the sweep."""

    config: dict[str, Any]
    folder: str
    run: tracking.Run
    served: Mapping[str, PooledReward]
    use_gpu: bool


def run_trial(chosen: dict[str, str], jobs: Mapping[str, Job]) -> None:
    """Run or continue the chosen trial; whatever its settings cannot do ends it as failed, with the reason.

    Other errors are raised: they may be a lost process, which Tune replaces, and the trial goes on from its checkpoint.
    """
    job = jobs[chosen["trial"]]
    config, folder, run = settings.validate(job.config), RunFolder(Path(job.folder)), job.run
    state = read_state(folder)

    def follow(report: Report) -> None:
        state.update(advanced(state, report))
        write_json(folder.state, state)
        if (selected := report.metrics.get(config.selection())) is not None:
            tune.report({QUERIES: state["reward_queries"], SELECTED: selected})  # last: Tune may end this process here

    try:
        if config.machine.num_workers == 1:
            final = _train_here(config, folder, run, job, follow)
        else:
            final = fit(config, folder, run, job.served, show=follow, tell=print)
    except (TrainingError, RunFailed, ValueError, OSError) as error:
        end_trial(config, folder, run, state, {"status": "failed", "error": str(error)})
        return
    end_trial(config, folder, run, final, {"status": "completed"})


def end_trial(config: ExperimentConfig, folder: RunFolder, run: tracking.Run, state: dict[str, Any], ending: Ending) -> None:
    """End the trial's MLflow run and write its summary, last, for a trial with a summary is not repeated."""
    status: tracking.Status = "FAILED" if ending["status"] == "failed" else "FINISHED"
    line = tracking.end_run(run.uri, run.run_id, status, folder=folder.path, tags={"status": ending["status"]})
    if line:
        print(line)
    write_json(folder.summary, summarise(config, folder, run, state, ending["status"]) | ending)


def read_state(folder: RunFolder) -> dict[str, Any]:
    """What the reports of a trial have told so far, empty for a new one."""
    return json.loads(folder.state.read_text(encoding="utf-8")) if folder.state.exists() else {}


def advanced(state: dict[str, Any], report: Report) -> dict[str, Any]:
    """The state of a run, as far as its reports tell it, after one more report."""
    metrics = report.metrics
    told: dict[str, Any] = {
        "step": report.step,
        "reward_queries": int(metrics["cost/reward_queries"]),
        "denoiser_calls": int(metrics["cost/denoiser_calls"]),
        "wall_seconds": metrics["cost/wall_seconds"],
    }
    evaluated = {name: value for name, value in metrics.items() if name.startswith("eval/")}
    if evaluated:
        told |= {"last_metrics": evaluated, "best_step": int(evaluated["eval/best_step"])}
    if report.step == 0:
        told["before_metrics"] = evaluated
    return state | told


def _train_here(
    config: ExperimentConfig, folder: RunFolder, run: tracking.Run, job: Job, follow: Callable[[Report], None]
) -> dict[str, Any]:
    def announce(report: Report) -> None:
        if report.checkpoint is not None:
            _keep(report.checkpoint, folder.checkpoints, report.step)
        follow(report)

    kept = sorted(folder.checkpoints.glob("step-*"))
    state = train_recorded(
        config,
        folder,
        run,
        group=Group(),
        device=torch.device("cuda" if job.use_gpu else "cpu"),
        resume_from=kept[-1] if kept else None,
        served=job.served,
        announce=announce,
        tell=print,
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
