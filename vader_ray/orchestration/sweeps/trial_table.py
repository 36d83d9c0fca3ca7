"""The results of a sweep: one per trial, as objects, as a table for MLflow, and printed.

A trial is represented by the adapter that it keeps, that of its best evaluation.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from vader_ray.config import ExperimentConfig
from vader_ray.display import Display
from vader_ray.errors import RunFailed
from vader_ray.files import write_text
from vader_ray.orchestration import selection
from vader_ray.orchestration.runs.summary import OPTIMISTIC, REWARD, RunSummary, rewards_of
from vader_ray.orchestration.sweeps.definition import SweepDefinition, Values, trial_name
from vader_ray.orchestration.sweeps.trials import Trial, TrialSet, TrialStatus
from vader_ray.orchestration.tracking.address import MlflowRun
from vader_ray.orchestration.tracking.pages import how_to_open

_NAMED = 6
"""Trials that the header names."""
_COSTS = ("steps", "reward_queries", "denoiser_calls", "wall_seconds")


@dataclass(frozen=True)
class TrialResult:
    """The outcome of a trial."""

    values: Values
    status: TrialStatus
    summary: RunSummary | None = None
    """Outcome of its run, None if its settings cannot work or it has not ended."""
    error: str | None = None
    """Why it failed."""
    path: Path | None = None
    """Its folder."""
    mlflow_run_id: str | None = None

    @classmethod
    def of(cls, trial: Trial) -> TrialResult:
        """Read the outcome of a trial from its folder."""
        if trial.folder is None:
            return cls(trial.values, trial.status, error=trial.error)
        summary = trial.summary
        return cls(
            values=trial.values,
            status=trial.status,
            summary=summary,
            error=summary.error if summary is not None else None,
            path=trial.folder.path,
            mlflow_run_id=trial.folder.read_metadata().get("mlflow_run_id"),
        )

    @property
    def name(self) -> str:
        return trial_name(self.values)

    @property
    def eligible(self) -> RunSummary | None:
        """Its summary, if it may be the best trial."""
        if self.summary is None:
            return None
        stopped_by_guard = self.summary.stop_reason is not None
        return self.summary if selection.is_eligible(self.status, stopped_by_guard) else None

    def row(self) -> dict[str, Any]:
        """Return the trial as a row of the table.

        Columns: ``trial``, the swept names, ``status``, ``error``, ``folder``, ``mlflow_run_id``,
            ``stop_reason``,
        ``selected`` (the selection metric with the best adapter), ``best_step``, for each reward R
        ``before/R``, ``after/R`` (last evaluation), ``best/R`` (best adapter), ``gain/R`` and
        ``standard_error/R`` on the validation prompts, what the test measured (``test/…``), and the costs.
        """
        row: dict[str, Any] = {"trial": self.name, **self.values, "status": self.status, "error": self.error}
        if self.path is not None:
            row |= {"folder": str(self.path), "mlflow_run_id": self.mlflow_run_id}
        if (summary := self.summary) is None:
            return row
        row |= {
            "stop_reason": summary.stop_reason,
            "selected": summary.selected,
            "best_step": summary.best_step,
        }
        metrics = {
            "before": summary.metrics_before,
            "after": summary.metrics,
            "best": summary.metrics_best,
        }
        for moment, measured in metrics.items():
            row |= {f"{moment}/{name}": value for name, value in rewards_of(measured).items()}
        for name, gain in summary.gains.items():
            row |= {f"gain/{name}": gain.mean, f"standard_error/{name}": gain.standard_error}
        return row | summary.metrics_test | {name: getattr(summary, name) for name in _COSTS}


@dataclass(frozen=True)
class SweepResult:
    """The outcome of a sweep."""

    path: Path
    """Folder of the sweep."""
    trials: tuple[TrialResult, ...]

    @property
    def best(self) -> RunSummary:
        """The run that is best by the recipe's selection metric; ``best_adapter`` is its adapter.

        Raises:
            RunFailed: no trial took all its steps.
        """
        if (best := best_of(self.trials)) is None or best.summary is None:
            raise RunFailed(f"no trial of {self.path} was completed; the table has the reasons")
        return best.summary


def write_table(results: Sequence[TrialResult], folder: Path) -> list[Path]:
    """Write ``trials.parquet`` and ``trials.json`` (MLflow's table format) and return their paths."""
    rows = [result.row() for result in results]
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    parquet, table = folder / "trials.parquet", folder / "trials.json"
    pq.write_table(pa.table({name: _array(values) for name, values in columns.items()}), parquet)
    data = [[columns[name][index] for name in columns] for index in range(len(rows))]
    write_text(table, json.dumps({"columns": list(columns), "data": data}))
    return [parquet, table]


def _array(values: Sequence[Any]) -> Any:
    """Return a column of one type; values of several types (5, "random") become text."""
    kinds = {type(value) for value in values if value is not None}
    return pa.array(
        [value if value is None else str(value) for value in values] if len(kinds) > 1 else values
    )


def best_of(results: Sequence[TrialResult]) -> TrialResult | None:
    """Return the eligible result with the highest selection metric, each with the adapter that it keeps."""
    selected = [(result, summary.selected) for result in results if (summary := result.eligible) is not None]
    scored = [(result, value) for result, value in selected if value is not None]
    return max(scored, key=lambda pair: pair[1], default=(None, 0.0))[0]


def front_of(results: Sequence[TrialResult], rewards: Sequence[str]) -> list[str]:
    """Return the names of the eligible results on the Pareto front of these rewards."""
    scores = {
        result.name: [rewards_of(summary.metrics_best)[name] for name in rewards]
        for result in results
        if (summary := result.eligible) is not None
    }
    return selection.pareto_front(scores)


def print_header(trials: TrialSet, num_trials: int, display: Display) -> None:
    """Print what a sweep will do: its trials, their budget, its folder, and how to open MLflow."""
    config, evaluation = trials.config, trials.config.evaluation
    queries = config.num_steps * config.videos_per_step
    names = ", ".join(trial.name for trial in trials.trials[:_NAMED]) + (
        ", …" if num_trials > min(_NAMED, len(trials.trials)) else ""
    )
    question = config.description.partition("\n")[0]
    display.log(f"sweep   {trials.folder.name}: {question}")
    display.log(f"trials  {num_trials}: {names}")
    display.log(
        f"budget  {config.num_steps} steps of {config.videos_per_step} videos for each trial, "
        f"{num_trials * queries} reward queries in all; {evaluation.num_videos} validation videos "
        f"every {evaluation.every} steps"
    )
    display.log(f"folder  {trials.folder.path}")
    display.log(f"MLflow  {how_to_open(trials.parent.uri, trials.parent.experiment_id)}")


def print_results(
    definition: SweepDefinition,
    config: ExperimentConfig,
    result: SweepResult,
    parent: MlflowRun,
    display: Display,
) -> None:
    """Print the table, the best trial, the Pareto front if the sweep wants it, and how to open MLflow."""
    trained = [spec.name for spec in config.rewards]
    names = [*trained, *(spec.name for spec in config.eval_rewards)]
    title = (
        f"{result.path.name}, validation prompts, by which trials are chosen: before → after ± standard "
        "error of the gain"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("trial", overflow="fold")
    table.add_column("status")
    for name in names:
        table.add_column(name if name in trained else f"{name} (never trained)", justify="right")
    for heading in ("queries", "seconds"):
        table.add_column(heading, justify="right")
    for trial in result.trials:
        table.add_row(trial.name, trial.status, *_cells(trial.summary, names))
    display.print(table)
    for trial in result.trials:
        if trial.error:
            print(f"{trial.name} failed: {trial.error}")
        if trial.summary is not None and trial.summary.stop_reason:
            print(f"{trial.name} stopped: {trial.summary.stop_reason}")
    if (best := best_of(result.trials)) is not None and (summary := best.summary) is not None:
        chosen = f"{summary.selected:.4f} at step {summary.best_step}"
        num_tried = sum(trial.summary is not None for trial in result.trials)
        print(f"best by {config.selection_metric()} of {num_tried} trials: {best.name} ({chosen})")
        print(describe_test(summary, names))
    if definition.pareto:
        front = front_of(result.trials, trained)
        print(f"Pareto front of {', '.join(trained)}: {'; '.join(front) or 'empty'}")
    print(f"MLflow: {how_to_open(parent.uri, parent.experiment_id)}")
    print(result.path)


def _cells(summary: RunSummary | None, names: Sequence[str]) -> list[str]:
    """Return the change of each reward, the reward queries and the seconds of a trial."""
    if summary is None:
        return []
    before, after = rewards_of(summary.metrics_before), rewards_of(summary.metrics)
    changes = [
        f"{before[name]:.4f} → {after[name]:.4f} ± {summary.gains[name].standard_error:.4f}"
        if name in summary.gains
        else ""
        for name in names
    ]
    return [*changes, f"{summary.reward_queries}", f"{summary.wall_seconds:.1f}"]


def describe_test(summary: RunSummary, names: Sequence[str]) -> str:
    """Return a line with the rewards of a trial on prompts and noise by which it was not chosen."""
    if (results := summary.tested) is None:
        return OPTIMISTIC
    changes = []
    for name in names:
        metric = f"{REWARD}{name}"
        if (gain := results.gains.get(metric)) is None:
            continue  # the trial has other rewards
        changes.append(
            f"{name} {results.before[metric]:.4f} → {results.after[metric]:.4f} "
            f"({gain.mean:+.4f} ± {gain.standard_error:.4f})"
        )
    return f"on test prompts: {', '.join(changes)}"
