"""Run the trials of a sweep on Ray Tune."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune

from vader_ray.config import ExperimentConfig
from vader_ray.display import Display
from vader_ray.errors import RunFailed, UserError
from vader_ray.imports import fast_imports
from vader_ray.orchestration import ray_private
from vader_ray.orchestration.clusters import connection
from vader_ray.orchestration.reward_service import pool
from vader_ray.orchestration.runs.finish import finish_run, record_traceback
from vader_ray.orchestration.runs.functions import pack_functions
from vader_ray.orchestration.runs.launch import new_queue
from vader_ray.orchestration.runs.run_dir import KEPT_BY_RAY
from vader_ray.orchestration.runs.storage import delete_from_run
from vader_ray.orchestration.sweeps.search import QUERIES, SELECTED, OptunaProposer, QueuedSearcher
from vader_ray.orchestration.sweeps.trial_progress import TrialProgress, passed_on
from vader_ray.orchestration.sweeps.trials import Trial, TrialSet
from vader_ray.stages import announce

_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that lacked only its summary reports nothing
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output ignores verbose=0
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of a recipe mean the same in every process
}


def tune_trials(
    trials: TrialSet,
    *,
    num_trials: int,
    max_concurrent: int | None,
    on_lost: Callable[[str], str],
    display: Display,
) -> None:
    """Run all trials that are not over; afterwards each has a summary.

    Args:
        num_trials: number of trials in all, those that a search still has to propose included.
        on_lost: as in `connection.connected`.
        display: shows the trials.

    Raises:
        KeyboardInterrupt: the user has stopped Tune.
    """
    config, folder, definition = trials.config, trials.folder, trials.definition
    queue = _Queue(trials, num_trials)
    if queue.is_empty:
        return
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # the traceback of a failed trial is in its error.log
    logging.getLogger("ray.tune.execution.tune_controller").setLevel(logging.CRITICAL)
    progress = TrialProgress(
        display, num_trials=num_trials, num_steps=config.num_steps, metric=config.selection_metric()
    )
    listener = _Listener(progress)
    with (
        connection.connected(
            config,
            num_runs=min(max_concurrent or 1, num_trials),
            # Ray Train uses it to notice that a stopped trial's controller has gone, and frees its CPUs
            needs_state_api=config.runtime.num_workers > 1,
            on_lost=on_lost,
        ),
        pool.start_pools(config) as remote_rewards,
    ):
        messages = new_queue()
        trainable = tune.with_parameters(
            _run_trial,
            remote_rewards=remote_rewards,
            functions=pack_functions(config.reward_names()),
            use_gpu=connection.uses_gpu(config.runtime),
            tracking_uri=trials.parent.uri,
            skip=KEPT_BY_RAY if config.runtime.num_workers > 1 else (),
            messages=messages,
        )
        storage_path = folder.storage or str(folder.path)
        delete_from_run(storage_path, "tune")  # of an earlier session: never read
        announce("starting the trials")
        tuner = tune.Tuner(
            tune.with_resources(trainable, _resources(config)),
            tune_config=tune.TuneConfig(
                search_alg=QueuedSearcher(queue.next, queue.complete),
                num_samples=-1,  # as many as the queue has
                max_concurrent_trials=min(
                    max_concurrent or num_trials, connection.max_concurrent_runs(config)
                ),
                scheduler=_asha(config) if definition.scheduler == "asha" else None,
                reuse_actors=True,  # a new process imports for longer than a small trial trains
                trial_name_creator=lambda trial: trial.config["trial"],
                trial_dirname_creator=lambda trial: trial.config["trial"],
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=storage_path,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=config.runtime.max_failures),
                callbacks=[listener],
            ),
        )
        with passed_on(messages, progress.receive):
            tuner.fit()
        announce("stopping Ray")
    display.body()
    folder.pull()
    for trial in queue.started:
        _finish(trial, listener)
    if unfinished := [trial.name for trial in trials.trials if trial.status == "unfinished"]:
        print(f"unfinished: {', '.join(unfinished)}")
        raise KeyboardInterrupt


def _run_trial(params: dict[str, Any], **given: Any) -> None:
    """Run a trial in its process, which imports the models; the driver does not."""
    with fast_imports():
        from vader_ray.orchestration.sweeps.run_trial import run_trial

    run_trial(params, **given)


class _Queue:
    """The trials to run: those that are not over, then the proposals of a search."""

    def __init__(self, trials: TrialSet, num_trials: int) -> None:
        self._trials = trials
        self._waiting = deque(trial for trial in trials.trials if not trial.is_over())
        self._proposer: OptunaProposer | None = None
        self.started: list[Trial] = []
        if trials.definition.search == "tpe":
            self._proposer = OptunaProposer(
                trials.definition.space, num_trials=num_trials, seed=trials.config.seed
            )
            for trial in trials.trials:
                self._proposer.add_known(trial.values, trial.score)
        can_propose = self._proposer is not None and len(trials.trials) < num_trials
        self.is_empty = not self._waiting and not can_propose

    def next(self) -> Trial | None:
        """Return the next trial, with its MLflow run open; None if there is none."""
        trial = self._waiting.popleft() if self._waiting else self._propose()
        if trial is not None:
            _check_pools(self._trials.config, trial)
            trial.open_mlflow_run(self._trials.folder.name, self._trials.parent)
            self.started.append(trial)
            self._trials.folder.push()
        return trial

    def complete(self, name: str, score: float | None) -> None:
        """Use the last score of a trial for further proposals."""
        if self._proposer is not None:
            self._proposer.complete(name, score)

    def _propose(self) -> Trial | None:
        """Return the next proposal whose settings work; the others stay in the sweep with their reason."""
        while self._proposer is not None and (values := self._proposer.next()) is not None:
            trial = self._trials.add(values)
            if trial.config is not None:
                return trial
            self._proposer.complete(trial.name, None)
        return None


def _check_pools(config: ExperimentConfig, trial: Trial) -> None:
    """Refuse a trial that changes a placed reward, whose actors are started once for all trials."""
    if trial.config is not None and pool.pool_settings(trial.config) != pool.pool_settings(config):
        raise UserError(
            f"{trial.name} changes a reward that has a placement, whose actors are shared by all trials; "
            "sweep other fields or remove the placement"
        )


def _resources(config: ExperimentConfig) -> dict[str, float]:
    """Return the resources of a trial's process; a driver of Train workers needs none, on the head."""
    if config.runtime.num_workers > 1:
        return {"cpu": 0, "node:__internal_head__": 0.001}
    return {"cpu": 0, "gpu": 1} if connection.uses_gpu(config.runtime) else {"cpu": 1}


def _asha(config: ExperimentConfig) -> tune.schedulers.AsyncHyperBandScheduler:
    """Return ASHA: at 1/8, 1/4 and 1/2 of the reward queries it stops the worse half of the trials."""
    budget = config.num_steps * config.videos_per_step
    return tune.schedulers.AsyncHyperBandScheduler(
        time_attr=QUERIES,
        metric=SELECTED,
        mode="max",
        max_t=budget,
        grace_period=max(1, budget // 8),
        reduction_factor=2,
    )


def _finish(trial: Trial, listener: _Listener) -> None:
    """Finish a trial whose process could not: the scheduler stopped it, or it was lost too often."""
    assert trial.config is not None
    assert trial.folder is not None
    assert trial.mlflow_run is not None
    if trial.folder.summary.exists():
        return
    if trial.name in listener.errors:
        error = record_traceback(trial.folder, *listener.errors[trial.name])
        finish_run(trial.config, trial.folder, trial.mlflow_run, "failed", error=error)
    elif trial.name in listener.ended:
        finish_run(trial.config, trial.folder, trial.mlflow_run, "stopped")


def _error_of(trial: Any) -> BaseException:
    """Return a trial's error from Tune's folder on this machine; Tune copies it to the storage later."""
    if trial.pickled_error_file is None:
        return RunFailed(Path(trial.error_file).read_text(encoding="utf-8"))
    error: BaseException = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    return error


@dataclass
class _Listener(tune.Callback):  # type: ignore[misc]
    """Displays and records how trials start and end."""

    progress: TrialProgress
    ended: set[str] = field(default_factory=set)
    errors: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Message and traceback, by trial."""

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self.progress.started(trial.config["trial"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self.ended.add(trial.config["trial"])
        self.progress.ended(trial.config["trial"], "ended")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        failure = ray_private.describe_trial_failure(_error_of(trial), trial.config["folder"])
        self.errors[trial.config["trial"]] = failure
        self.progress.ended(trial.config["trial"], f"failed: {failure[0]}")
