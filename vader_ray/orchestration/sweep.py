"""The driver of a sweep: trials from a search space, Ray Tune, MLflow's parent and children, the table of results.

Every trial is a run of its own in the sweep's folder. That folder is the sweep's memory, not Ray Tune's: a trial that has
a summary is over, any other goes on from its checkpoint, whatever happened to the driver.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import tune

from vader_ray.config import ConfigError, ExperimentConfig, load
from vader_ray.orchestration import cluster, served, tracking
from vader_ray.orchestration.errors import RunFailed
from vader_ray.orchestration.folder import RunFolder, open_folder, write_json
from vader_ray.orchestration.results import Row, describe, row_of, write_table
from vader_ray.orchestration.run import check_names, read_summary
from vader_ray.orchestration.space import Sweep, Values, draw, load_base, overrides_of, trial_name
from vader_ray.orchestration.trial import QUERIES, SELECTED, Ending, Job, end_trial, read_state, run_trial

_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that was complete but for its summary reports nothing
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output ignores verbose=0
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of a recipe mean the same in every process
}


@dataclass(slots=True)
class Trial:
    """One member of a sweep."""

    values: Values
    config: ExperimentConfig | None = None
    error: str = ""
    """Why its settings cannot work, when there is no recipe."""
    folder: RunFolder | None = None
    run: tracking.Run | None = None

    @property
    def name(self) -> str:
        return trial_name(self.values)

    def is_over(self) -> bool:
        """Whether nothing is left to do: it was completed, or stopped by the scheduler."""
        if self.config is None or self.folder is None:
            return True
        if not self.folder.summary.exists():
            return False
        return self.folder.is_complete(self.config.num_steps) or read_summary(self.folder)["status"] == "stopped"


def run_sweep(
    sweep: Sweep,
    *,
    recipe: str | None,
    overrides: Sequence[str],
    workers_per_trial: int,
    max_concurrent: int | None,
    num_trials: int | None,
    storage: Path,
    resume: bool,
) -> Path:
    """Run a sweep to its end, or continue the latest unfinished one with the same settings; prints its results.

    Raises:
        ConfigError, TrackingError: something cannot work; raised before any work is done.
        RunFailed: no trial succeeded.
        KeyboardInterrupt: the user stopped it; what was computed is kept.
    """
    source, all_overrides, loaded = load_base(sweep, recipe, [*overrides, f"machine.num_workers={workers_per_trial}"])
    where = Path(source).resolve().parent if Path(source).is_file() else None
    base = check_names(loaded, where).model_copy(update={"name": sweep.name, "description": sweep.question})
    folder = open_folder(base, storage, None, resume=resume)
    known = folder.read_run()
    values = known.get("trials") or draw(sweep, num_trials, base.seed)
    trials = [_prepare(sweep, chosen, loaded, source, all_overrides, where, folder) for chosen in values]
    parent = tracking.start_run(
        base,
        folder.name,
        folder.recipe.read_text(encoding="utf-8"),
        tags={"sweep": folder.name},
        resume_run_id=known.get("mlflow_run_id"),
    )
    write_json(
        folder.run,
        {"identity": base.identity(), "mlflow_run_id": parent.run_id, "tracking_uri": parent.uri, "trials": values},
    )
    rows: list[Row] = []
    status: tracking.Status = "FAILED"
    try:
        _run(sweep, base, folder, parent, [trial for trial in trials if not trial.is_over()], max_concurrent)
        if unfinished := [trial.name for trial in trials if _status(trial) == "unfinished"]:
            print(f"unfinished: {', '.join(unfinished)}")
            raise KeyboardInterrupt
        status = "FINISHED" if any(_status(trial) in ("completed", "stopped") for trial in trials) else "FAILED"
        write_json(folder.summary, {"status": "completed" if status == "FINISHED" else "failed", "steps": base.num_steps})
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        rows = [row_of(trial.values, trial.config, trial.folder, trial.error) for trial in trials]
        tables = write_table(rows, folder.path)
        tags = {"mlflow.loggedArtifacts": '[{"path": "trials.json", "type": "table"}]'}  # shown by MLflow as a table
        if line := tracking.end_run(parent.uri, parent.run_id, status, folder=folder.path, tags=tags, files=tables):
            print(line)
    describe(sweep, base, rows, folder, parent.uri)
    if status == "FAILED":
        raise RunFailed(f"no trial of {folder.path} succeeded; the table says why")
    return folder.path


def _prepare(
    sweep: Sweep,
    values: Values,
    loaded: ExperimentConfig,
    source: str,
    overrides: Sequence[str],
    where: Path | None,
    folder: RunFolder,
) -> Trial:
    """A trial with its recipe and folder; one whose settings cannot work keeps the reason instead."""
    try:
        config = check_names(load(source, [*overrides, *overrides_of(sweep, values, loaded)]), where)
    except ConfigError as error:
        return Trial(values, error=str(error))
    return Trial(values, config, folder=open_folder(config, folder.path, trial_name(values), resume=False))


def _status(trial: Trial) -> str:
    if trial.config is None or trial.folder is None:
        return "failed"
    return str(read_summary(trial.folder)["status"]) if trial.folder.summary.exists() else "unfinished"


def _run(
    sweep: Sweep,
    base: ExperimentConfig,
    folder: RunFolder,
    parent: tracking.Run,
    trials: Sequence[Trial],
    max_concurrent: int | None,
) -> None:
    """Run what is not over; on return each trial has a summary, unless the user has stopped Tune."""
    if not trials:
        return
    _check_shared(base, trials)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for trial in trials:
        _open_run(trial, folder, parent)
    with cluster.connected(base, num_runs=min(max_concurrent or 1, len(trials))), served.serving(base) as pools:
        jobs = {trial.name: _job(trial, pools) for trial in trials}
        listener = _Listener(max(len(name) for name in jobs))
        shutil.rmtree(folder.path / "tune", ignore_errors=True)  # of an earlier session: never read
        tune.Tuner(
            tune.with_resources(tune.with_parameters(run_trial, jobs=jobs), _resources(base)),
            param_space={"trial": tune.grid_search(list(jobs))},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=min(max_concurrent or len(trials), cluster.room_for(base)),
                scheduler=_scheduler(base) if sweep.stop_early else None,
                trial_name_creator=lambda trial: trial.config["trial"],
                trial_dirname_creator=lambda trial: trial.config["trial"],
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(folder.path),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=base.machine.max_failures),
                callbacks=[listener],
            ),
        ).fit()
    for trial in trials:
        _close(trial, listener)


def _check_shared(base: ExperimentConfig, trials: Sequence[Trial]) -> None:
    """Actors of placed rewards are started once, for all trials."""
    for trial in trials:
        if trial.config is not None and served.pooled(trial.config) != served.pooled(base):
            raise ConfigError(
                f"{trial.name} changes a reward that has a placement; its actors serve all trials, so sweep other fields "
                "or take the placement away"
            )


def _open_run(trial: Trial, folder: RunFolder, parent: tracking.Run) -> None:
    """The trial's child run in MLflow: a new one, or that of an earlier session."""
    assert trial.config is not None
    assert trial.folder is not None
    tags = {name: str(value) for name, value in trial.values.items()} | {"sweep": folder.name, "trial": trial.name}
    trial.folder.summary.unlink(missing_ok=True)  # of a failed attempt
    trial.run = tracking.start_run(
        trial.config,
        trial.name,
        trial.folder.recipe.read_text(encoding="utf-8"),
        parent_run_id=parent.run_id,
        tags=tags,
        resume_run_id=trial.folder.read_run().get("mlflow_run_id"),
    )
    identity = trial.config.identity()
    write_json(trial.folder.run, {"identity": identity, "mlflow_run_id": trial.run.run_id, "tracking_uri": trial.run.uri})


def _job(trial: Trial, pools: Mapping[str, served.PooledReward]) -> Job:
    assert trial.config is not None
    assert trial.folder is not None
    assert trial.run is not None
    use_gpu = cluster.uses_gpu(trial.config.machine)
    return Job(trial.config.model_dump(mode="json"), str(trial.folder.path), trial.run, pools, use_gpu)


def _resources(base: ExperimentConfig) -> dict[str, float]:
    """What a trial's own process needs. The driver of Train workers waits and needs no processor: it sits on the head."""
    if base.machine.num_workers > 1:
        return {"cpu": 0, "node:__internal_head__": 0.001}
    return {"cpu": 0, "gpu": 1} if cluster.uses_gpu(base.machine) else {"cpu": 1}


def _scheduler(base: ExperimentConfig) -> tune.schedulers.AsyncHyperBandScheduler:
    """ASHA by reward queries: the worse half stops at each eighth, quarter, half of the budget that an evaluation meets."""
    budget = base.num_steps * base.videos_per_step
    return tune.schedulers.AsyncHyperBandScheduler(
        time_attr=QUERIES,
        metric=SELECTED,
        mode="max",
        max_t=budget + 1,  # at max_t a trial would be stopped before it has handed over its results
        grace_period=max(1, budget // 8),
        reduction_factor=2,
    )


def _close(trial: Trial, listener: _Listener) -> None:
    """Write the summary of a trial whose process could not: stopped by the scheduler, or lost too often."""
    assert trial.config is not None
    assert trial.folder is not None
    assert trial.run is not None
    if trial.folder.summary.exists():
        return
    ending: Ending | None = {"status": "stopped"} if trial.name in listener.over else None
    if trial.name in listener.errors:
        ending = {"status": "failed", "error": listener.errors[trial.name]}
    if ending is not None:
        end_trial(trial.config, trial.folder, trial.run, read_state(trial.folder), ending)


@dataclass
class _Listener(tune.Callback):  # type: ignore[misc]
    """Prints evaluations as they come and remembers how trials ended."""

    width: int
    over: set[str] = field(default_factory=set)
    errors: dict[str, str] = field(default_factory=dict)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        if SELECTED in result:
            print(f"{trial.config['trial']:{self.width}}  {result[QUERIES]:6} queries  {result[SELECTED]:.4f}", flush=True)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self.over.add(trial.config["trial"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self.errors[trial.config["trial"]] = str(trial.get_error()).strip().splitlines()[-1]
