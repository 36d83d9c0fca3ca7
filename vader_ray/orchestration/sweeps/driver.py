"""The driver of a sweep: its trials, MLflow's parent run, the results and the report.

Every trial is a run of its own in the sweep's folder. A sweep is continued from that folder, not from Ray
Tune's: a trial with a summary is over, any other continues from its checkpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from threading import Lock

from vader_ray.config import ExperimentConfig
from vader_ray.display import Display, display_stages
from vader_ray.errors import RunFailed, UserError
from vader_ray.orchestration.reporting.html_report import figures_folder, write_report
from vader_ray.orchestration.runs.launch import warn_without_guard
from vader_ray.orchestration.runs.run_dir import RunDir, claim_run_dir
from vader_ray.orchestration.signals import sigterm_interrupts
from vader_ray.orchestration.sweeps.adapter_soup import make_soups
from vader_ray.orchestration.sweeps.definition import BaseRecipe, SweepDefinition, draw
from vader_ray.orchestration.sweeps.request import check_counts, check_overrides, check_trials
from vader_ray.orchestration.sweeps.trial_table import (
    SweepResult,
    TrialResult,
    print_header,
    print_results,
    write_table,
)
from vader_ray.orchestration.sweeps.trials import Trial, TrialSet
from vader_ray.orchestration.sweeps.tune_trials import tune_trials
from vader_ray.orchestration.tracking import mlflow_runs
from vader_ray.orchestration.tracking.address import COMMAND_TAG, MlflowRun
from vader_ray.orchestration.tracking.environment import command_line
from vader_ray.stages import announce
from vader_ray.training.resolve import resolve_names


def run_sweep(  # noqa: PLR0913
    definition: SweepDefinition,
    base_recipe: ExperimentConfig | str | None = None,
    *,
    overrides: Sequence[str] = (),
    workers_per_trial: int = 1,
    max_concurrent: int | None = None,
    num_trials: int | None = None,
    runs_dir: Path = Path("runs"),
    storage: str | None = None,
    resume: bool = False,
) -> SweepResult:
    """Run a sweep, or continue the latest unfinished one with the same settings, and print its results.

    Args:
        base_recipe: a loaded recipe, a packaged recipe's name or the path of a YAML file; by default the
            definition's.
        overrides: settings of the recipe, ``a.b=value``.
        workers_per_trial: Ray Train workers of each trial.
        max_concurrent: number of trials that run at once; by default as many as the cluster has room for.
        num_trials: number of trials; by default the definition's.
        storage: keep checkpoints and a copy of the folder there, for machines without a common disk: a URI or
            a shared folder.

    Raises:
        UserError: the settings cannot work; raised before any work is done.
        RunFailed: no trial succeeded.
        KeyboardInterrupt: the user stopped the sweep; its results so far are kept.
    """
    check_counts(num_trials=num_trials, workers_per_trial=workers_per_trial, max_concurrent=max_concurrent)
    workers = f"runtime.num_workers={workers_per_trial}"
    recipe = BaseRecipe.of(definition, base_recipe, [*overrides, workers])
    with display_stages(sys.stdout, f"sweep {definition.name}: checking the recipe of the trials") as display:
        resolved = resolve_names(recipe.load(), recipe.folder)
        check_overrides(definition, recipe, overrides, resolved.seed)
        check_trials(definition, recipe, resolved)
        config = resolved.model_copy(update={"name": definition.name, "description": definition.question})
        with (
            claim_run_dir(config, runs_dir, None, resume=resume, storage=storage) as folder,
            sigterm_interrupts(),
        ):
            announce("opening the MLflow run")
            trials = _open_trials(definition, recipe, config, folder, num_trials)
            wanted = num_trials or definition.num_trials or len(trials.trials)
            print_header(trials, wanted, display)
            warn_without_guard(config)
            return _run_to_its_end(trials, display, num_trials=wanted, max_concurrent=max_concurrent)


def _run_to_its_end(
    trials: TrialSet, display: Display, *, num_trials: int, max_concurrent: int | None
) -> SweepResult:
    """Run the trials and soups, then write and print the table and the report."""
    definition, folder = trials.definition, trials.folder
    status: mlflow_runs.Status = "FAILED"
    end = _End(trials)
    try:
        run = partial(tune_trials, max_concurrent=max_concurrent, on_lost=end.on_lost, display=display)
        run(trials, num_trials=num_trials)
        soups = make_soups(trials)
        end.soups = tuple(soups.trials)
        run(soups, num_trials=len(soups.trials))
        if any(trial.status in ("completed", "stopped") for trial in end.everything()):
            status = "FINISHED"
        trials.record(completed=status == "FINISHED")
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        result = end.close(status)
    announce("writing the report")
    _report(folder, trials.parent)
    folder.push()
    print_results(definition, trials.config, result, trials.parent, display)
    if status == "FAILED":
        raise RunFailed(f"no trial of {folder.path} succeeded; the table has the reasons")
    return result


class _End:
    """The end of a sweep: its table is written and its MLflow run closed."""

    def __init__(self, trials: TrialSet) -> None:
        self.soups: tuple[Trial, ...] = ()
        self._trials, self._lock = trials, Lock()

    def everything(self) -> tuple[Trial, ...]:
        """Return the trials, then the soups."""
        return *self._trials.trials, *self.soups

    def close(self, status: mlflow_runs.Status) -> SweepResult:
        """Close the sweep and return its table."""
        with self._lock:
            result = SweepResult(
                self._trials.folder.path, tuple(TrialResult.of(trial) for trial in self.everything())
            )
            _close(self._trials, result, status)
        return result

    def on_lost(self, loss: str) -> str:
        """Close the sweep after a loss of Ray and return the message to the user."""
        self.close("FAILED")
        return f"{loss}; continue the sweep with --resume"


def _open_trials(
    definition: SweepDefinition,
    recipe: BaseRecipe,
    config: ExperimentConfig,
    folder: RunDir,
    num_trials: int | None,
) -> TrialSet:
    """Open the sweep's MLflow run and prepare its trials: those of an earlier session, or new draws."""
    known = folder.read_metadata()
    parent = mlflow_runs.start_run(
        config,
        folder.name,
        folder.recipe.read_text(encoding="utf-8"),
        tags={"sweep": folder.name, COMMAND_TAG: command_line()},
        resume_run_id=known.get("mlflow_run_id"),
    )
    trials = TrialSet(definition, recipe, config, folder, parent)
    new = [] if definition.search == "tpe" else draw(definition, num_trials, config.seed)
    if values := known.get("trials") or new:
        trials.add(*values)
    return trials


def _close(trials: TrialSet, result: SweepResult, status: mlflow_runs.Status) -> None:
    """Write the table of results and close the sweep's MLflow run."""
    folder, parent = trials.folder, trials.parent
    tables = write_table(result.trials, folder.path)
    tags = {
        "mlflow.loggedArtifacts": '[{"path": "trials.json", "type": "table"}]'
    }  # MLflow displays it as a table
    undelivered = mlflow_runs.end_run(
        parent.uri, parent.run_id, status, folder=folder.path, tags=tags, files=tables
    )
    if undelivered:
        print(undelivered)
    folder.push()


def _report(folder: RunDir, parent: MlflowRun) -> None:
    """Write the report, if there was an evaluation, and add it to the sweep's MLflow run."""
    try:
        page = write_report([folder.name], folder.path / "report.html", parent.uri)
    except UserError as error:
        print(f"no report: {error}")
        return
    files = [page, *sorted(figures_folder(page).iterdir())]
    if undelivered := mlflow_runs.add_files(parent.uri, parent.run_id, folder.path, files):
        print(undelivered)
    print(f"report: {page}")
