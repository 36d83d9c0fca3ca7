"""The end of a run: its MLflow run is closed and its summary written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

from vader_ray.config import ExperimentConfig
from vader_ray.errors import RunFailed, describe, last_line
from vader_ray.files import write_text
from vader_ray.orchestration.runs.run_dir import RunDir
from vader_ray.orchestration.runs.summary import RunStatus, RunSummary, gains_of
from vader_ray.orchestration.tracking import mlflow_runs
from vader_ray.orchestration.tracking.address import MlflowRun
from vader_ray.orchestration.tracking.outbox import Event
from vader_ray.training.checkpoint import State
from vader_ray.uris import redact

MAX_TAG_LENGTH = 1000
"""Characters of an error in an MLflow tag."""
_MLFLOW_STATUS: dict[RunStatus, mlflow_runs.Status] = {
    "completed": "FINISHED",
    "stopped": "FINISHED",
    "interrupted": "KILLED",
    "failed": "FAILED",
}


def finish_run(
    config: ExperimentConfig,
    folder: RunDir,
    mlflow_run: MlflowRun,
    status: RunStatus = "completed",
    *,
    error: str | None = None,
) -> RunSummary:
    """Close the MLflow run, then write the summary from the last state that rank 0 has logged, and return it.

    The summary comes last, since a run with a summary is not continued.

    Args:
        status: becomes ``stopped`` if the guard ended a completed run.
    """
    state = folder.read_state()
    if status == "completed" and state.stopped:
        status = "stopped"
    tags = {"status": status} | ({} if error is None else {"error": error[:MAX_TAG_LENGTH]})
    summary = summarize(config, folder, mlflow_run, state, status, error)
    undelivered = mlflow_runs.end_run(
        mlflow_run.uri,
        mlflow_run.run_id,
        _MLFLOW_STATUS[status],
        folder=folder.path,
        tags=tags,
        model=_best_adapter(folder, summary) if summary.is_usable else None,
    )
    if undelivered:
        print(undelivered)
    summary.write(folder.summary)
    try:
        folder.push()
    except OSError as error:
        print(f"{folder.storage} did not take the summary ({describe(error)}); it is in {folder.summary}")
    return summary


def _best_adapter(folder: RunDir, summary: RunSummary) -> Event:
    """Write the model card of the best adapter; return the event that sends both to MLflow."""
    from vader_ray.orchestration.publishing.best_adapter import logged_adapter  # imports matplotlib

    return logged_adapter(folder, summary)


def record_traceback(folder: RunDir, message: str, traceback: str) -> str:
    """Write the traceback of an error to the run's folder, if there is one; return the message with its
    path."""
    if not traceback:
        return message
    write_text(folder.error_log, traceback)
    return f"{message}; the traceback is in {folder.at_home(folder.error_log)}"


class EarlyEnd:
    """Finishes a run that an error ends early: once, however many parts of the program meet an error.

    Args:
        mlflow_run: returns the run's MLflow run once it is open, or raises the error because of which it is
            not.
    """

    def __init__(self, config: ExperimentConfig, folder: RunDir, mlflow_run: Callable[[], MlflowRun]) -> None:
        self._config, self._folder, self._mlflow_run = config, folder, mlflow_run
        self._lock, self._is_recorded = Lock(), False

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Finish the run if the block raises an exception; of nested blocks, the innermost one does."""
        try:
            yield
        except BaseException as error:
            self._record(error)
            raise

    def on_lost(self, loss: str) -> str:
        """Finish the run after a loss of Ray; return the message to the user. Other threads may call it."""
        error = RunFailed(f"{loss}; continue with --resume --run-name {self._folder.name}")
        self._record(error)
        return str(error)

    def _record(self, first: BaseException) -> None:
        """Finish the run; what else fails is printed, since the first error counts."""
        interrupted = isinstance(first, KeyboardInterrupt)
        status: RunStatus = "interrupted" if interrupted else "failed"
        message = None if interrupted else last_line(first)
        with self._lock:
            if self._is_recorded:
                return
            self._is_recorded = True
            try:
                finish_run(self._config, self._folder, self._mlflow_run(), status, error=message)
            except (OSError, ValueError, RunFailed) as error:
                if error is not first:
                    print(f"{self._folder.summary} was not written: {describe(error)}", flush=True)


def summarize(
    config: ExperimentConfig,
    folder: RunDir,
    mlflow_run: MlflowRun,
    state: State,
    status: RunStatus,
    error: str | None = None,
) -> RunSummary:
    """Return the summary of a run in this state."""
    return RunSummary(
        recipe=config.name,
        path=folder.home or folder.path,
        status=status,
        stop_reason=state.stopped or None,
        error=error,
        steps=state.step,
        num_workers=config.runtime.num_workers,
        reward_queries=state.reward_queries,
        denoiser_calls=state.denoiser_calls,
        train_seconds=state.train_seconds,
        wall_seconds=state.wall_seconds,
        gpu_hours=state.gpu_hours,
        metrics_before=state.before_metrics,
        metrics=state.last_metrics,
        metrics_best=state.best_metrics,
        metrics_test=state.test_metrics,
        test_prompt_gains=state.test_prompt_gains,
        gains=gains_of(state.last_metrics),
        selection_metric=config.selection_metric(),
        best_step=state.best_step if state.best_metrics else None,
        guard_metrics=config.guard_metrics(),
        alarms=tuple(state.alarms),
        expected_metrics=dict(config.expected_metrics),
        adapter=folder.at_home(folder.adapter),
        best_adapter=folder.at_home(folder.best_adapter),
        before_after=folder.at_home(folder.before_after),
        gallery=folder.at_home(folder.gallery),
        videos=tuple(folder.at_home(path) for path in sorted(folder.videos.glob("step-*/*.mp4"))),
        mlflow_run_id=mlflow_run.run_id,
        mlflow_experiment_id=mlflow_run.experiment_id,
        tracking_uri=redact(mlflow_run.uri),
        storage=folder.storage,
    )
