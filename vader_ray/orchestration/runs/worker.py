"""What a Ray Train worker runs: the training loop, with Ray as the courier of its reports."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train.torch import get_device
from ray.util.queue import Queue
from torch import distributed

from vader_ray import config as settings
from vader_ray.orchestration.reward_service.pool import PooledReward
from vader_ray.orchestration.runs.run_dir import RunDir, working_copy
from vader_ray.orchestration.runs.run_logger import RunLogger
from vader_ray.orchestration.tracking.mlflow_runs import MlflowRun
from vader_ray.training.distributed import WorkerGroup
from vader_ray.training.events import StepEvent
from vader_ray.training.experiment import build
from vader_ray.training.loop import train
from vader_ray.training.model_cache import ModelCache
from vader_ray.training.step import TrainingError


def worker_loop(job: dict[str, Any]) -> dict[str, Any] | None:
    """Run or continue the job's recipe on this worker; on rank 0, the final state as plain JSON.

    Args:
        job: ``config`` (plain JSON), ``folder`` and ``storage`` (of the run), ``run`` (of MLflow); ``messages``, a queue to
            the driver: ``("report", StepEvent)``, ``("line", text)`` and ``("error", text)``; ``served``, the rewards in actors.
    """
    config = settings.validate(job["config"])
    context, messages = ray.train.get_context(), job["messages"]
    group = WorkerGroup(context.get_world_rank(), context.get_world_size())
    try:
        with ExitStack() as stack:
            folder = RunDir(Path(job["folder"]))
            if group.rank == 0:
                folder = stack.enter_context(working_copy(job["folder"], job["storage"]))
            return _train(config, folder, MlflowRun(*job["run"]), group, messages, job["served"])
    except (TrainingError, ValueError, OSError) as error:
        # the user's to correct, so the driver stops the run; anything else may be a lost worker, which Ray replaces, and then
        # it takes the process group away from the others while they still use it
        if group.world_size == 1 or distributed.is_initialized():
            messages.put(("error", str(error)))
        raise


def _train(
    config: settings.ExperimentConfig,
    folder: RunDir,
    run: MlflowRun,
    group: WorkerGroup,
    messages: Queue,
    served: Mapping[str, PooledReward],
) -> dict[str, Any] | None:
    def announce(event: StepEvent) -> None:
        if group.rank == 0:
            messages.put(("report", _light(event)))
        if event.is_kept:
            saved = ray.train.Checkpoint.from_directory(event.checkpoint) if event.checkpoint else None
            ray.train.report({"step": event.step}, checkpoint=saved)

    def tell(text: str) -> None:
        messages.put(("line", text))

    with ExitStack() as stack:
        checkpoint = ray.train.get_checkpoint()
        resume_from = Path(stack.enter_context(checkpoint.as_directory())) if checkpoint else None
        return train_recorded(
            config,
            folder,
            run,
            group=group,
            device=_device(),
            resume_from=resume_from,
            served=served,
            announce=announce,
            tell=tell,
            should_checkpoint=lambda: ray.train.get_preemption_info() is not None,
        )


def train_recorded(
    config: settings.ExperimentConfig,
    folder: RunDir,
    run: MlflowRun,
    *,
    group: WorkerGroup,
    device: torch.device,
    resume_from: Path | None,
    served: Mapping[str, PooledReward],
    announce: Callable[[StepEvent], None],
    tell: Callable[[str], None],
    cache: ModelCache | None = None,
    **more: Any,
) -> dict[str, Any] | None:
    """Train; rank 0 records every report in the run's folder and in MLflow before it is announced, and returns the state.

    Args:
        cache: of this process; what lies there is not loaded again.
        more: further arguments of `train`.
    """
    recorder = None
    if group.rank == 0:
        recorder = RunLogger(config, folder, run, resumed_step=_step_of(resume_from), tell=tell)

    def report(event: StepEvent) -> None:
        if recorder is not None:
            recorder.record(event)
        announce(event)

    tags = {"mlflow_run_id": run.run_id}
    experiment = build(config, device, served, cache)
    state = train(config, experiment, group=group, on_step=report, resume_from=resume_from, tags=tags, **more)
    if recorder is None:
        return None
    if line := recorder.close(state.alarms):
        tell(line)
    return asdict(state)


def _device() -> torch.device:
    device = get_device()
    assert isinstance(device, torch.device)
    return device


def _step_of(checkpoint: Path | None) -> int:
    """The step that a checkpoint continues after."""
    return (
        int(json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))["step"]) if checkpoint else 0
    )


def _light(report: StepEvent) -> StepEvent:
    """What the driver shows: numbers and alarms only."""
    return StepEvent(report.step, report.metrics, alarms=report.alarms)
