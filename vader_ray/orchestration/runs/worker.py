"""The worker of a run: build the recipe's model and rewards, train, and log every step.

What imports MLflow is imported on rank 0 alone, which logs: it takes seconds.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import ray.train
import torch
from pyarrow.fs import FileSelector, FileSystem, FileType
from ray.train.torch import get_device

from vader_ray import config as settings
from vader_ray.errors import RunFailed, UserError, cause_traceback, first_line
from vader_ray.orchestration import ray_private
from vader_ray.orchestration.runs.functions import unpack_functions
from vader_ray.orchestration.runs.job import Job
from vader_ray.orchestration.runs.retry import check_takes, is_disk_error, retry_writes, size_of, write_failed
from vader_ray.running import record_running
from vader_ray.stages import announced_to
from vader_ray.training.checkpoint import choose_undamaged
from vader_ray.training.distributed import WorkerGroup
from vader_ray.training.events import StepEvent
from vader_ray.training.experiment import build
from vader_ray.training.inference import evaluate_against_base
from vader_ray.training.loop import train
from vader_ray.training.model_cache import ModelCache

if TYPE_CHECKING:
    from vader_ray.orchestration.runs.run_dir import RunDir
    from vader_ray.orchestration.runs.run_logger import RunLogger


class Host(Protocol):
    """The process in which a worker runs: Ray Train's, or that of a sweep's trial."""

    group: WorkerGroup
    device: torch.device
    cache: ModelCache | None
    """Loaded models and rewards, if the process runs several runs one after another."""
    records_in_background: bool
    """Whether videos are encoded and results sent while training goes on; not where `on_step` may end the
    process."""

    def open(self, job: Job) -> AbstractContextManager[tuple[RunDir | None, Path | None]]:
        """Yield the run's folder (rank 0 only) and the checkpoint to continue from (None: start anew).

        In the block, the stages of rank 0 are passed on.
        """

    def on_step(self, event: StepEvent) -> None:
        """Pass on a step that has been logged, and keep its checkpoint."""

    def should_end(self) -> bool:
        """Return whether the run ends after this step with a checkpoint; the same on all workers."""

    def log(self, message: str) -> None:
        """Print a message for the user."""

    def is_preempted(self) -> bool:
        """Return whether a machine of the run will be taken away; the same on all workers."""

    def fail(self, error: UserError | RunFailed) -> None:
        """Pass on the error that ends the run."""


def run_worker(job: Job, host: Host | None = None) -> None:
    """Train the job's recipe on this worker, from its start or its last checkpoint.

    Ray Train calls this function in every worker process, a sweep in the process of a trial with one worker.
    Rank 0 logs each step to the run's folder and to MLflow before the host passes it on. In a run that holds
    an adapter soup, nothing is trained: the soup is evaluated.
    """
    host = RayTrainHost(job) if host is None else host
    try:
        with host.open(job) as (folder, resume_from), ExitStack() as stack:
            unpack_functions(job["functions"])
            config = settings.validate(job["config"])
            step = _step_of(resume_from)
            logger = None
            if folder is not None:
                logger = stack.enter_context(_open_logger(config, folder, job, host, step))

            def on_step(event: StepEvent) -> None:
                if logger is not None:
                    logger.record(event)
                host.on_step(event)

            experiment = build(config, host.device, job["remote_rewards"], host.cache, host.group)
            if folder is not None and folder.soup.exists():
                costs = json.loads((folder.soup / "costs.json").read_text(encoding="utf-8"))
                state = evaluate_against_base(
                    config, experiment, folder.soup / "adapter", costs, on_step=on_step
                )
            else:
                state = train(
                    config,
                    experiment,
                    group=host.group,
                    on_step=on_step,
                    resume_from=resume_from,
                    should_checkpoint=host.is_preempted,
                    should_end=host.should_end,
                )
                if state.step < config.num_steps and not state.stopped:
                    return  # the driver, which has requested it, delivers what waits
            if logger is not None and (undelivered := logger.close(state.alarms)):
                host.log(undelivered)
    except (UserError, RunFailed) as error:
        host.fail(error)
        raise
    except OSError as error:
        if not is_disk_error(error):
            raise
        failure = write_failed(error.filename or job["folder"], error)
        host.fail(failure)
        raise failure from error


def _open_logger(
    config: settings.ExperimentConfig, folder: RunDir, job: Job, host: Host, resumed_step: int
) -> RunLogger:
    from vader_ray.orchestration.runs.run_logger import RunLogger

    return RunLogger(
        config,
        folder,
        job["mlflow_run"],
        resumed_step=resumed_step,
        log=host.log,
        in_background=host.records_in_background,
    )


class RayTrainHost:
    """A worker process of Ray Train."""

    cache: ModelCache | None = None
    records_in_background = True

    def __init__(self, job: Job) -> None:
        context = ray.train.get_context()
        self.group = WorkerGroup(context.get_world_rank(), context.get_world_size())
        self.device = train_device()
        self._messages, self._end_key = job["messages"], job["end_key"]
        self._num_steps = job["config"]["num_steps"]
        record_running(ray_private.running_file(job["folder"], self.group.rank))
        self._retry_minutes = job["config"]["checkpoint"]["retry_minutes"]

    @contextmanager
    def open(self, job: Job) -> Iterator[tuple[RunDir | None, Path | None]]:
        with ExitStack() as stack:
            folder = None
            if self.group.rank == 0:
                stack.enter_context(announced_to(lambda stage: self._messages.put(("stage", tuple(stage)))))
                from vader_ray.orchestration.runs.run_dir import working_copy

                folder = stack.enter_context(working_copy(job["folder"], job["storage"]))
            latest = ray.train.get_checkpoint()
            candidates = [] if latest is None else [latest, *_earlier_checkpoints(latest)]
            named = ((each.path, Path(stack.enter_context(each.as_directory()))) for each in candidates)
            yield folder, choose_undamaged(named, self.log if self.group.rank == 0 else lambda text: None)

    def on_step(self, event: StepEvent) -> None:
        if self.group.rank == 0:
            small = StepEvent(event.step, event.metrics, alarms=event.alarms, is_kept=event.is_kept)
            self._messages.put(("step", pickle.dumps(small)))  # so the queue's process imports no torch
        if event.is_kept:
            takes = event.checkpoint is not None and self._storage_takes(event, event.checkpoint)
            saved = ray.train.Checkpoint.from_directory(event.checkpoint) if takes else None
            ray.train.report({"step": event.step}, checkpoint=saved)

    def _storage_takes(self, event: StepEvent, checkpoint: Path) -> bool:
        """Return whether a checkpoint can be kept: wait for a disk or at the end, else go on without it."""
        storage, path = self._filesystem_and_path()
        size = size_of(checkpoint)
        if storage.type_name == "local" or event.step == self._num_steps or event.state.stopped:
            retry_writes(
                lambda: check_takes(storage, path, size), path, minutes=self._retry_minutes, log=self.log
            )
            return True
        try:
            check_takes(storage, path, size)
        except OSError as error:
            self.log(
                f"the storage {path} cannot be reached ({first_line(error)}); training continues without "
                f"the checkpoint of step {event.step}"
            )
            return False
        return True

    def _filesystem_and_path(self) -> tuple[FileSystem, str]:
        storage = ray.train.get_context().get_storage()
        return storage.storage_filesystem, storage.storage_fs_path

    def log(self, message: str) -> None:
        self._messages.put(("log", message))

    def is_preempted(self) -> bool:
        return ray.train.get_preemption_info() is not None

    def should_end(self) -> bool:
        return any(self.group.gather([self.group.rank == 0 and ray_private.is_end_requested(self._end_key)]))

    def fail(self, error: UserError | RunFailed) -> None:
        if isinstance(error, UserError):
            self._messages.put(("user_error", str(error)))
        else:
            self._messages.put(("failed", (str(error), cause_traceback(error))))


def _earlier_checkpoints(latest: ray.train.Checkpoint) -> list[ray.train.Checkpoint]:
    """Return the run's checkpoints before this one, latest first; their names begin with the time."""
    root, _, name = latest.path.rpartition("/")
    found = latest.filesystem.get_file_info(FileSelector(root))
    names = {info.base_name for info in found if info.type == FileType.Directory}
    earlier = sorted((other for other in names if "checkpoint_" <= other < name), reverse=True)
    return [ray.train.Checkpoint(f"{root}/{other}", latest.filesystem) for other in earlier]


def train_device() -> torch.device:
    """Return the device that Ray Train has assigned to this worker."""
    device = get_device()
    assert isinstance(device, torch.device)
    return device


def _step_of(checkpoint: Path | None) -> int:
    """Return the step after which a checkpoint continues; 0 without one."""
    if checkpoint is None:
        return 0
    return int(json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))["step"])
