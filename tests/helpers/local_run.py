"""A run in this process: the worker of a trial, whose steps go to a function instead of Ray Tune."""

from __future__ import annotations

from collections.abc import Callable

from vader_ray.config import ExperimentConfig
from vader_ray.orchestration.runs.functions import pack_functions
from vader_ray.orchestration.runs.job import Job
from vader_ray.orchestration.runs.run_dir import RunDir
from vader_ray.orchestration.runs.worker import run_worker
from vader_ray.orchestration.sweeps.run_trial import TuneHost
from vader_ray.orchestration.tracking.address import MlflowRun
from vader_ray.training.events import StepEvent


class LocalHost(TuneHost):
    """A host on a machine that nobody takes away; there is no Ray whose node could be drained."""

    def is_preempted(self) -> bool:
        return False


def run_locally(
    config: ExperimentConfig,
    folder: RunDir,
    mlflow_run: MlflowRun,
    on_step: Callable[[StepEvent], None] = lambda event: None,
    *,
    in_background: bool = False,
) -> None:
    """Train and log like a worker, of a trial or (`in_background`) of Ray Train."""
    job = Job(
        config=config.model_dump(mode="json"),
        folder=str(folder.path),
        storage=folder.storage,
        mlflow_run=mlflow_run,
        remote_rewards={},
        functions=pack_functions([]),
    )
    host = LocalHost(config, folder, use_gpu=False, report=on_step)
    host.records_in_background = in_background
    run_worker(job, host)
