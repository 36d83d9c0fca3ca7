"""The results of a sweep: one row per trial, as Parquet, for MLflow and for people.

A trial stands for the adapter that it keeps, that of its best evaluation, whether it went on to the end or its guard stopped it
(`is_eligible`): so the table, the best one and the Pareto front say.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from vader_ray.config import ExperimentConfig
from vader_ray.orchestration.runs.launch import read_summary
from vader_ray.orchestration.runs.run_dir import RunDir
from vader_ray.orchestration.sweeps.definition import SweepDefinition, Values, trial_name

Row = dict[str, Any]
"""``trial``, the swept values, ``status``, ``reason`` (the guard's, where it stopped the trial), of each reward R ``before/R``,
``after/R`` (the last evaluation), ``best/R`` (with the adapter that is kept), ``gain/R`` and ``standard_error/R`` (of the last
evaluation), ``selected`` (the metric by which the recipe chooses, with the adapter that is kept), ``best_step``, costs,
``mlflow_run_id``, ``folder`` and ``error``."""


def row_of(values: Values, config: ExperimentConfig | None, folder: RunDir | None, error: str) -> Row:
    """What became of a trial."""
    row: Row = {"trial": trial_name(values), **values, "status": "failed", "error": error or None}
    if config is None or folder is None:
        return row
    row |= {
        "status": "unfinished",
        "folder": str(folder.path),
        "mlflow_run_id": folder.read_run().get("mlflow_run_id"),
    }
    if not folder.summary.exists():
        return row
    summary = read_summary(folder)
    row |= {"status": summary["status"], "reason": summary["reason"], "error": summary.get("error")}
    row |= {"selected": summary["selection"]["best"], "best_step": summary["best_step"]}
    for moment in ("before", "after", "best"):
        row |= {f"{moment}/{name}": value for name, value in summary["eval"][moment].items()}
    for name, gain in summary["gain"].items():
        row |= {f"gain/{name}": gain["mean"], f"standard_error/{name}": gain["standard_error"]}
    costs = ("steps", "reward_queries", "denoiser_calls", "wall_seconds")
    return row | {name: summary[name] for name in costs}


def write_table(rows: Sequence[Row], folder: Path) -> list[Path]:
    """``trials.parquet`` and ``trials.json`` (MLflow's table format), with the union of the rows' columns; their paths."""
    columns = {
        name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)
    }
    parquet, table = folder / "trials.parquet", folder / "trials.json"
    pq.write_table(pa.table({name: _array(values) for name, values in columns.items()}), parquet)
    data = [[columns[name][place] for name in columns] for place in range(len(rows))]
    table.write_text(json.dumps({"columns": list(columns), "data": data}), encoding="utf-8")
    return [parquet, table]


def _array(values: Sequence[Any]) -> Any:
    """A column of one type; a swept field with values of several (5, "random") becomes text."""
    kinds = {type(value) for value in values if value is not None}
    return pa.array(
        [value if value is None else str(value) for value in values] if len(kinds) > 1 else values
    )


def is_eligible(status: str, stopped_by_guard: bool) -> bool:
    """Whether a trial may be the best: it spent its budget, or its guard saw that more would only harm.

    One that the scheduler stopped had fallen behind, and is not compared with those that went on.
    """
    return status == "completed" or (status == "stopped" and stopped_by_guard)


def _competing(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if is_eligible(row["status"], bool(row.get("reason")))]


def best_of(rows: Sequence[Row]) -> Row | None:
    """The competing row that is best by the recipe's selection metric, each with the adapter that it keeps."""
    return max(_competing(rows), key=lambda row: float(row["selected"]), default=None)


def pareto_front(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """The competing rows that no other one equals or beats in all of these columns and beats in one."""
    rows = _competing(rows)

    def beats(one: Row, other: Row) -> bool:
        return all(one[name] >= other[name] for name in names) and any(
            one[name] > other[name] for name in names
        )

    return [row for row in rows if not any(beats(other, row) for other in rows)]


def describe(
    sweep: SweepDefinition, base: ExperimentConfig, rows: Sequence[Row], folder: RunDir, uri: str
) -> None:
    """Print the table, the best trial, the Pareto front where one is wanted, and where to look on."""
    trained = [spec.name for spec in base.rewards]
    heldout = [spec.name for spec in base.eval_rewards]
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    table = Table(
        title=f"{folder.name}, held-out prompts: before → after ± standard error of the gain",
        title_justify="left",
    )
    table.add_column("trial", overflow="fold")
    table.add_column("status")
    for name in (*trained, *heldout):
        table.add_column(name if name in trained else f"{name} (never trained)", justify="right")
    for heading in ("queries", "seconds"):
        table.add_column(heading, justify="right")
    for row in rows:
        measured = [_change(row, name) for name in (*trained, *heldout)]
        spent = [
            f"{row[name]:g}" if row.get(name) is not None else ""
            for name in ("reward_queries", "wall_seconds")
        ]
        table.add_row(row["trial"], row["status"], *measured, *spent)
    console.print(table)
    for row in rows:
        if row.get("error"):
            print(f"{row['trial']} failed: {row['error']}")
        if row.get("reason"):
            print(f"{row['trial']} stopped: {row['reason']}")
    if best := best_of(rows):
        print(
            f"best by {base.selection_metric()}: {best['trial']} ({best['selected']:.4f} at step {best['best_step']})"
        )
    if sweep.pareto:
        front = pareto_front(rows, [f"best/{name}" for name in trained])
        print(f"Pareto front of {', '.join(trained)}: {'; '.join(row['trial'] for row in front) or 'empty'}")
    opened = (
        f"{Path(sys.executable).parent / 'mlflow'} ui --backend-store-uri {uri}"
        if uri.startswith("sqlite")
        else uri
    )
    print(f"MLflow: {opened}")
    print(folder.path)


def _change(row: Row, name: str) -> str:
    if f"after/{name}" not in row:
        return ""
    return f"{row[f'before/{name}']:.4f} → {row[f'after/{name}']:.4f} ± {row[f'standard_error/{name}']:.4f}"
