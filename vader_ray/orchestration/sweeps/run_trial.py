"""One trial of a sweep in a process of Ray Tune: a run whose evaluations are reported to Tune."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.util.queue import Queue

from vader_ray import config as settings
from vader_ray.config import ExperimentConfig
from vader_ray.errors import RunFailed, UserError, cause_traceback
from vader_ray.files import atomic_write
from vader_ray.orchestration import ray_private
from vader_ray.orchestration.reward_service.remote_reward import PooledReward
from vader_ray.orchestration.runs.finish import finish_run, record_traceback
from vader_ray.orchestration.runs.functions import unpack_functions
from vader_ray.orchestration.runs.job import Job
from vader_ray.orchestration.runs.launch import launch
from vader_ray.orchestration.runs.retry import retry_writes
from vader_ray.orchestration.runs.run_dir import RunDir, working_copy
from vader_ray.orchestration.runs.worker import run_worker
from vader_ray.orchestration.sweeps.search import QUERIES, SELECTED
from vader_ray.running import record_running
from vader_ray.stages import announced_to
from vader_ray.training.checkpoint import choose_undamaged
from vader_ray.training.distributed import WorkerGroup
from vader_ray.training.events import StepEvent
from vader_ray.training.model_cache import ModelCache
from vader_ray.uris import Uri

_CACHE = ModelCache()
"""Cache of this process, in which Tune runs one trial after another."""


def run_trial(
    params: dict[str, Any],
    remote_rewards: Mapping[str, PooledReward],
    functions: bytes,
    use_gpu: bool,
    skip: tuple[str, ...],
    tracking_uri: Uri,
    messages: Queue,
) -> None:
    """Run or continue a trial. A `UserError` or `RunFailed` ends it as failed, with the message.

    Other errors are raised: the process may be lost, which Tune replaces, and the trial continues from its
    checkpoint. With one worker, the worker runs in this process; with more, this process is the driver of Ray
    Train workers.

    Args:
        params: ``folder`` and ``storage`` of the trial.
        functions: rewards given as Python functions, from `pack_functions`.
        skip: subfolders that this process does not copy.
        tracking_uri: server or database, which may have a password that no file contains.
        messages: queue to the sweep's driver, for its display: ``(trial, "stage", (name, done, total))``,
            ``(trial, "step", (steps, selection metric or None))``.
    """

    def send(kind: str, content: object) -> None:
        messages.actor.put.remote((params["trial"], kind, content))  # not waited for: its loss ends no trial

    with announced_to(lambda stage: send("stage", tuple(stage))):
        _run_trial(params, remote_rewards, functions, use_gpu, skip, tracking_uri, send)


def _run_trial(
    params: dict[str, Any],
    remote_rewards: Mapping[str, PooledReward],
    functions: bytes,
    use_gpu: bool,
    skip: tuple[str, ...],
    tracking_uri: Uri,
    send: Callable[[str, object], None],
) -> None:
    unpack_functions(functions)
    with working_copy(params["folder"], params["storage"], skip=skip) as folder:
        config, mlflow_run = settings.load(str(folder.recipe)), folder.read_mlflow_run(tracking_uri)
        report = _Report(config, send)
        try:
            if config.runtime.num_workers == 1:
                job = Job(
                    config=config.model_dump(mode="json"),
                    folder=params["folder"],
                    storage=params["storage"],
                    mlflow_run=mlflow_run,
                    remote_rewards=remote_rewards,
                    functions=functions,
                )
                record_running(ray_private.running_file(params["folder"]))
                run_worker(job, TuneHost(config, folder, use_gpu=use_gpu, report=report))
            else:
                launch(config, folder, mlflow_run, remote_rewards, on_step=report, log=print)
        except (UserError, RunFailed) as error:
            text = record_traceback(folder, str(error), cause_traceback(error))
            finish_run(config, folder, mlflow_run, "failed", error=text)
            return
        finish_run(config, folder, mlflow_run)
    if report.last is not None:
        tune.report(report.last)


class _Report:
    """Reports evaluations to Tune, except the last one, which waits until all results are written."""

    def __init__(self, config: ExperimentConfig, send: Callable[[str, object], None]) -> None:
        self._config, self._send = config, send
        self.last: dict[str, float] | None = None

    def __call__(self, event: StepEvent) -> None:
        selected = event.metrics.get(self._config.selection_metric())
        self._send("step", (event.step, selected))
        if selected is None:
            return
        metrics = {QUERIES: int(event.metrics["cost/reward_queries"]), SELECTED: selected}
        # the state of a step does not travel from the workers of a trial to its process
        stopped_by_guard = self._config.guard.action == "stop" and event.metrics.get("guard/fired")
        if event.step == self._config.num_steps or stopped_by_guard:
            self.last = metrics
        else:
            tune.report(metrics)  # Tune may end this process here


class TuneHost:
    """The process of a trial with one worker."""

    cache: ModelCache | None = _CACHE
    records_in_background = False

    def __init__(
        self,
        config: ExperimentConfig,
        folder: RunDir,
        *,
        use_gpu: bool,
        report: Callable[[StepEvent], None],
    ) -> None:
        self.group, self.device = WorkerGroup(), torch.device("cuda" if use_gpu else "cpu")
        self._config, self._folder, self._report = config, folder, report

    @contextmanager
    def open(self, job: Job) -> Iterator[tuple[RunDir, Path | None]]:
        latest_first = reversed(kept_checkpoints(self._folder.checkpoints))
        named = ((f"{self._folder.name}/{path.name}", path) for path in latest_first)
        yield self._folder, choose_undamaged(named, self.log)

    def on_step(self, event: StepEvent) -> None:
        if event.is_kept and event.checkpoint is not None:
            checkpoint, limits = event.checkpoint, self._config.checkpoint

            def keep() -> None:
                keep_checkpoint(checkpoint, self._folder.checkpoints, event.step, limits.keep)

            for write in (keep, self._folder.push):
                path = self._folder.storage or self._folder.path
                retry_writes(write, path, minutes=limits.retry_minutes, log=self.log)
        self._report(event)

    def log(self, message: str) -> None:
        print(message, flush=True)

    def is_preempted(self) -> bool:
        return ray_private.is_node_draining()

    def should_end(self) -> bool:
        return False

    def fail(self, error: UserError | RunFailed) -> None:
        """Leave the error to `run_trial`."""


def keep_checkpoint(checkpoint: Path, root: Path, step: int, num_kept: int) -> None:
    """Copy a checkpoint to ``root/step-STEP`` and delete all but the last `num_kept` ones.

    If the process is killed, the latest checkpoint in `root` is complete.
    """
    with atomic_write(root / f"step-{step:08d}") as unfinished:
        shutil.copytree(checkpoint, unfinished)
    for path in kept_checkpoints(root)[:-num_kept]:
        shutil.rmtree(path)


def kept_checkpoints(root: Path) -> list[Path]:
    """Return the complete checkpoints in the order of their steps; a storage receives ``state.json`` last."""
    return sorted(path.parent for path in root.glob(f"step-{'[0-9]' * 8}/state.json"))
