"""The driver of a sweep: trials from a search space, Ray Tune, MLflow's parent and children, the table of results.

Every trial is a run of its own in the sweep's folder. That folder is the sweep's memory, not Ray Tune's: a trial that has
a summary is over, any other goes on from its checkpoint, whatever happened to the driver.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import tune

from vader_ray.config import ConfigError, ExperimentConfig
from vader_ray.errors import RunFailed
from vader_ray.orchestration.clusters import connection
from vader_ray.orchestration.reporting.data_efficiency import show_curves
from vader_ray.orchestration.reporting.html_report import figures_folder, write_report
from vader_ray.orchestration.reporting.past_runs import find_runs
from vader_ray.orchestration.reward_service import pool
from vader_ray.orchestration.runs.launch import check_names, warn_without_guard
from vader_ray.orchestration.runs.run_dir import KEPT_BY_RAY, RunFolder, open_folder, write_json
from vader_ray.orchestration.runs.storage import delete, join
from vader_ray.orchestration.sweeps.adapter_soup import make_mixes
from vader_ray.orchestration.sweeps.definition import Sweep, draw, load_base, wanted_trials
from vader_ray.orchestration.sweeps.run_trial import QUERIES, Ending, end_trial, read_state, run_trial
from vader_ray.orchestration.sweeps.search import SELECTED, Proposals, Supply
from vader_ray.orchestration.sweeps.trial_table import describe, row_of, write_table
from vader_ray.orchestration.sweeps.trials import Members, Trial
from vader_ray.orchestration.tracking import mlflow_runs

_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that was complete but for its summary reports nothing
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output ignores verbose=0
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of a recipe mean the same in every process
}


def run_sweep(
    sweep: Sweep,
    *,
    recipe: str | None,
    overrides: Sequence[str],
    workers_per_trial: int,
    max_concurrent: int | None,
    num_trials: int | None,
    runs_dir: Path,
    resume: bool,
    storage: str | None = None,
) -> Path:
    """Run a sweep to its end, or continue the latest unfinished one with the same settings; prints its results.

    Args:
        storage: where checkpoints and a copy of the folder are kept for all machines, a URI or a shared folder.

    Raises:
        ConfigError, TrackingError: something cannot work; raised before any work is done.
        RunFailed: no trial succeeded.
        KeyboardInterrupt: the user stopped it; what was computed is kept.
    """
    source, all_overrides, loaded = load_base(sweep, recipe, [*overrides, f"machine.num_workers={workers_per_trial}"])
    where = Path(source).resolve().parent if Path(source).is_file() else None
    base = check_names(loaded, where).model_copy(update={"name": sweep.name, "description": sweep.question})
    folder = open_folder(base, runs_dir, None, resume=resume, storage=storage)
    warn_without_guard(base)
    known = folder.read_run()
    parent = mlflow_runs.start_run(
        base,
        folder.name,
        folder.recipe.read_text(encoding="utf-8"),
        tags={"sweep": folder.name},
        resume_run_id=known.get("mlflow_run_id"),
    )
    members = Members(sweep, base, loaded, source, all_overrides, folder, parent)
    if values := known.get("trials") or ([] if sweep.learn else draw(sweep, num_trials, base.seed)):
        members.add(*values)
    trials = members.trials
    status: mlflow_runs.Status = "FAILED"
    try:
        _run(members, num_trials=wanted_trials(sweep, num_trials) or len(trials), max_concurrent=max_concurrent)
        mixes = make_mixes(members)
        trials = [*trials, *mixes.trials]
        _run(mixes, num_trials=len(mixes.trials), max_concurrent=max_concurrent)
        status = "FINISHED" if any(trial.status in ("completed", "stopped") for trial in trials) else "FAILED"
        write_json(folder.summary, {"status": "completed" if status == "FINISHED" else "failed", "steps": base.num_steps})
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        rows = [row_of(trial.values, trial.config, trial.folder, trial.error) for trial in trials]
        tables = write_table(rows, folder.path)
        tags = {"mlflow.loggedArtifacts": '[{"path": "trials.json", "type": "table"}]'}  # shown by MLflow as a table
        if line := mlflow_runs.end_run(parent.uri, parent.run_id, status, folder=folder.path, tags=tags, files=tables):
            print(line)
        folder.push()
    _report(sweep, folder, parent)
    folder.push()
    describe(sweep, base, rows, folder, parent.uri)
    if status == "FAILED":
        raise RunFailed(f"no trial of {folder.path} succeeded; the table says why")
    return folder.path


def _report(sweep: Sweep, folder: RunFolder, parent: mlflow_runs.Run) -> None:
    """Write the report about all trials and add it, with its figures, to the parent run; a sweep does not fail with it."""
    try:
        page = write_report([folder.name], folder.path / "report.html", parent.uri)
        files = show_curves(find_runs(parent.uri, [folder.name]), folder.path / "curves") if sweep.curves else []
    except ValueError as error:
        print(f"no report: {error}")
        return
    files += [page, *sorted(figures_folder(page).iterdir())]
    if line := mlflow_runs.add_files(parent.uri, parent.run_id, folder.path, files):
        print(line)
    print(f"report: {page}")


def _run(members: Members, *, num_trials: int, max_concurrent: int | None) -> None:
    """Run what is not over; on return each trial has a summary.

    Raises:
        KeyboardInterrupt: the user has stopped Tune.
    """
    base, folder, sweep = members.base, members.folder, members.sweep
    waiting = deque(trial for trial in members.trials if not trial.is_over())
    proposals = _proposals(members, num_trials) if sweep.learn else None
    if not waiting and (proposals is None or len(members.trials) >= num_trials):
        return
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    skip = KEPT_BY_RAY if base.machine.num_workers > 1 else ()
    at_once = max_concurrent or num_trials
    listener = _Listener()
    handed = list[Trial]()

    def take() -> Trial | None:
        trial = waiting.popleft() if waiting else _add(members, proposals)
        if trial is not None:
            _check_shared(base, trial)
            trial.open_run(folder.name, members.parent)
            handed.append(trial)
            folder.push()
        return trial

    def tell(name: str, score: float | None) -> None:
        if proposals is not None:
            proposals.tell(name, score)

    with connection.connected(base, num_runs=min(max_concurrent or 1, num_trials)), pool.serving(base) as pools:
        trainable = tune.with_parameters(run_trial, served=pools, use_gpu=connection.uses_gpu(base.machine), kept_elsewhere=skip)
        place = folder.storage or str(folder.path)
        delete(join(place, "tune"))  # of an earlier session: never read
        tune.Tuner(
            tune.with_resources(trainable, _resources(base)),
            tune_config=tune.TuneConfig(
                search_alg=Supply(take, tell),
                num_samples=-1,  # as many as there are
                max_concurrent_trials=min(at_once, connection.room_for(base)),
                scheduler=_scheduler(base) if sweep.stop_early else None,
                reuse_actors=True,  # a new process imports for longer than a small trial trains
                trial_name_creator=lambda trial: trial.config["trial"],
                trial_dirname_creator=lambda trial: trial.config["trial"],
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=place,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=base.machine.max_failures),
                callbacks=[listener],
            ),
        ).fit()
    folder.pull()
    for trial in handed:
        _close(trial, listener)
    if unfinished := [trial.name for trial in members.trials if trial.status == "unfinished"]:
        print(f"unfinished: {', '.join(unfinished)}")
        raise KeyboardInterrupt


def _proposals(members: Members, num_trials: int) -> Proposals:
    """Of new trials, with what the known ones have told."""
    proposals = Proposals(members.sweep.space, num_trials=num_trials, seed=members.base.seed)
    for trial in members.trials:
        proposals.seen(trial.values, trial.score)
    return proposals


def _add(members: Members, proposals: Proposals | None) -> Trial | None:
    """The next proposal whose settings work; the others are members too, with their reason."""
    while proposals is not None and (values := proposals.next()) is not None:
        trial = members.add(values)
        if trial.config is not None:
            return trial
        proposals.tell(trial.name, None)
    return None


def _check_shared(base: ExperimentConfig, trial: Trial) -> None:
    """Actors of placed rewards are started once, for all trials."""
    if trial.config is not None and pool.pooled(trial.config) != pool.pooled(base):
        raise ConfigError(
            f"{trial.name} changes a reward that has a placement; its actors serve all trials, so sweep other fields "
            "or take the placement away"
        )


def _resources(base: ExperimentConfig) -> dict[str, float]:
    """What a trial's own process needs. The driver of Train workers waits and needs no processor: it sits on the head."""
    if base.machine.num_workers > 1:
        return {"cpu": 0, "node:__internal_head__": 0.001}
    return {"cpu": 0, "gpu": 1} if connection.uses_gpu(base.machine) else {"cpu": 1}


def _scheduler(base: ExperimentConfig) -> tune.schedulers.AsyncHyperBandScheduler:
    """ASHA by reward queries: the worse half stops at each eighth, quarter, half of the budget that an evaluation meets."""
    budget = base.num_steps * base.videos_per_step
    return tune.schedulers.AsyncHyperBandScheduler(
        time_attr=QUERIES,
        metric=SELECTED,
        mode="max",
        max_t=budget,
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

    over: set[str] = field(default_factory=set)
    errors: dict[str, str] = field(default_factory=dict)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        if SELECTED in result:
            print(f"{trial.config['trial']:24}  {result[QUERIES]:6} queries  {result[SELECTED]:.4f}", flush=True)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self.over.add(trial.config["trial"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self.errors[trial.config["trial"]] = str(trial.get_error()).strip().splitlines()[-1]
