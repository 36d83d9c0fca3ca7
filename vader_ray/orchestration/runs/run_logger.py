"""Rank 0's logger: write each step of a run to its folder and to MLflow."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from vader_ray.config import ExperimentConfig
from vader_ray.errors import describe, first_line
from vader_ray.files import atomic_write
from vader_ray.orchestration.runs.background import Background
from vader_ray.orchestration.runs.query_log import QueryLog
from vader_ray.orchestration.runs.retry import retry_writes
from vader_ray.orchestration.runs.run_dir import RunDir
from vader_ray.orchestration.runs.video_recorder import VideoRecorder
from vader_ray.orchestration.tracking.address import MlflowRun
from vader_ray.orchestration.tracking.tracker import Tracker
from vader_ray.stages import announce
from vader_ray.training.events import StepEvent, Video

MAX_ALARMS = 10
"""Alarms in a tag of the run, whose length MLflow limits; the last ones are kept."""


class RunLogger:
    """Log steps in order, each once, even if an earlier process has logged steps after `resumed_step`.

    What a continued run needs is on disk when `record` returns: reward queries, adapters, numbers for MLflow
    and the frames of videos. A thread encodes the videos and sends to MLflow while training goes on; what it
    has not finished when the process is killed, the next process does.

    Args:
        in_background: continue while the thread works; otherwise each step waits for it.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        folder: RunDir,
        mlflow_run: MlflowRun,
        *,
        resumed_step: int,
        log: Callable[[str], None],
        in_background: bool,
    ) -> None:
        self._config, self._folder, self._log, self._in_background = config, folder, log, in_background
        self._has_push_failed = False
        self._background = Background()
        self._tracker = Tracker(
            mlflow_run.uri,
            mlflow_run.run_id,
            folder.path,
            system_metrics=config.tracking.system_metrics,
            on_message=log,
            submit=self._background.submit,
        )
        self._queries = QueryLog(folder.queries)
        self._queries.rewind(resumed_step)
        self._videos = VideoRecorder(config, folder, self._tracker, log)
        for step, videos in self._videos.unrecorded(resumed_step).items():
            self._record_later(step, videos, folder.read_state().before)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for failure in self._background.close():
            if error is None:
                raise failure
            self._log(f"recording failed too: {describe(failure)}")

    def record(self, event: StepEvent) -> None:
        """Log a step: files first, so that every file that MLflow refers to exists.

        Call it before the step's checkpoint is handed over; a run that is killed and continued then has each
        step once.
        """
        self._background.check()
        self._queries.add(event.queries)
        if event.checkpoint is not None:
            checkpoint = event.checkpoint
            self._retry(lambda: self._queries.commit(event.step))
            self._retry(lambda: _copy_folder(checkpoint / "adapter", self._folder.adapter))
            self._retry(lambda: _copy_folder(checkpoint / "best_adapter", self._folder.best_adapter))
        if event.videos:
            self._background.wait()  # for the videos before: frames of one evaluation are in memory
            self._retry(lambda: self._videos.keep(event.step, event.videos))
        (self._tracker.log_test if event.is_test else self._tracker.log)(event.step, event.metrics)
        for alarm in event.alarms:
            self._log(alarm)
        if event.alarms:
            self._tracker.log_tag("vader_ray.guard", "\n".join(event.alarms))
        self._retry(lambda: self._folder.write_state(event.state))
        if not self._in_background:
            self._record_later(event.step, event.videos, event.state.before)
            self._background.wait()
        is_last = event.step == self._config.num_steps or bool(event.state.stopped)
        if is_last or event.checkpoint is not None or self._config.selection_metric() in event.metrics:
            self._push(must_succeed=is_last)
        if self._in_background:
            self._record_later(event.step, event.videos, event.state.before)

    def _record_later(
        self, step: int, videos: Sequence[Video], scores_before: dict[str, list[float]]
    ) -> None:
        if videos:
            record = partial(self._videos.record, step, videos, scores_before)
            self._background.submit(lambda: self._retry(record))

    def _retry(self, write: Callable[[], None]) -> None:
        minutes = self._config.checkpoint.retry_minutes
        retry_writes(write, self._folder.storage or self._folder.path, minutes=minutes, log=self._log)

    def _push(self, *, must_succeed: bool) -> None:
        """Copy local changes to the storage, if there is one; what it does not take is copied by the next
        call, unless this one must succeed."""
        if self._folder.storage is None:
            return
        self._background.wait()  # the thread changes the folder
        if must_succeed:
            self._retry(self._folder.push)
            return
        try:
            self._folder.push()
        except OSError as error:
            if not self._has_push_failed:
                self._log(
                    f"{self._folder.storage} did not take the run's files ({first_line(error)}); "
                    "training continues, and they are sent again after the next checkpoint or evaluation"
                )
            self._has_push_failed = True
        else:
            self._has_push_failed = False

    def close(self, alarms: Sequence[str]) -> str | None:
        """Log the results and deliver everything that waits for MLflow.

        Returns:
            A message about undelivered results, unless the driver will deliver them.
        """
        announce("writing videos and sending results to MLflow")
        if alarms:
            self._tracker.log_tag("vader_ray.guard", "\n".join(alarms[-MAX_ALARMS:]))
        self._background.wait()
        for path in (self._folder.before_after, self._folder.gallery):
            self._tracker.log_file(path)
        for path in sorted(self._folder.adapter.iterdir()):
            self._tracker.log_file(path, self._folder.adapter.name)
        for path in sorted(self._folder.queries.glob("*.parquet")):
            self._tracker.log_file(path, "queries")
        self._background.wait()
        undelivered = self._tracker.close()
        self._retry(self._folder.push)
        return undelivered if self._folder.home is None else None


def _copy_folder(source: Path, target: Path) -> None:
    with atomic_write(target) as unfinished:
        shutil.copytree(source, unfinished)
