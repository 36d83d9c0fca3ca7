"""Every packaged shapes recipe with several seeds on test prompts: table and sheets of docs/results.md.

    python -m benchmarks.results --output runs/results --time-limit 60    # as often as it takes
    python -m benchmarks.results --output runs/results --table --page docs/results.md --summary-page README.md

Each recipe and seed is a run of `vader_ray.train` in OUTPUT/RECIPE-seed-N, with its checkpoints; a second
start continues a run that was interrupted, and skips those that have ended. An OUTPUT with runs of other
models or of another version of a recipe is refused. The runs are in OUTPUT/mlflow.db, so
``vader-ray report results --tracking-uri sqlite:///OUTPUT/mlflow.db`` shows them.

Numbers are of ``best_adapter/`` on test prompts, by which nothing was chosen. Each seed has its own training
and its own noise on the same prompts, so the interval is that of a mean over seeds and prompts that are both
samples of many (`vader_ray.metrics.core.statistics.crossed_interval`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.command import Output, Page, Seeds, Short, Table, TimeLimit, deadline_of
from benchmarks.engine import machine
from benchmarks.pages import check_page, figures_folder, markdown_table, show, write_part
from benchmarks.results_page import (
    Result,
    draw_sheets,
    metrics_table,
    results_figure,
    results_table,
    summary_table,
)
from benchmarks.training_runs import check_models, models_digest
from vader_ray import train
from vader_ray.config import RECIPES, ExperimentConfig, load
from vader_ray.orchestration.runs.run_dir import RunDir

SHORT = {
    "num_steps": 2,
    "sampling.num_inference_steps": 2,
    "sampling.truncation_depth": 1,
    "evaluation.every": 1,
    "evaluation.num_videos": 2,
    "evaluation.num_shown": 2,
    "evaluation.num_test_videos": 3,
}
SUMMARY = ("shapes_hps", "shapes_detection", "shapes_vlm_judge")
"""Recipes in the table of ``--summary-page``."""
INPUTS = "inputs.json"
"""File of OUTPUT with the models and the machine of its runs."""


def recipes() -> list[str]:
    """List the packaged recipes of the embedded shapes models."""
    return sorted(path.stem for path in RECIPES.glob("shapes_*.yaml"))


def config_of(recipe: str, seed: int, output: Path, *, short: bool) -> ExperimentConfig:
    """Return a packaged recipe with a seed, tracked in the folder of the results."""
    changes: dict[str, Any] = {
        "seed": seed,
        "tracking.uri": f"sqlite:///{output.resolve()}/mlflow.db",
        "tracking.experiment": "results",
        "tracking.system_metrics": False,
    }
    if short:
        changes |= SHORT | {"prompts.test": list(load(recipe).prompts.test or ())[:3]}
    return load(recipe, changes)


def run_name(recipe: str, seed: int) -> str:
    """Return the name of a run's folder."""
    return f"{recipe}-seed-{seed}"


def check_inputs(output: Path) -> dict[str, Any]:
    """Record the models and the machine of a new folder; return those of its first run.

    Raises:
        typer.BadParameter: the folder has runs of other models.
    """
    path = output / INPUTS
    if not path.exists():
        output.mkdir(parents=True, exist_ok=True)
        recorded = {"models": models_digest(), "date": time.strftime("%Y-%m-%d")}
        path.write_text(json.dumps(recorded | machine(torch.device("cpu")), indent=2) + "\n")
    known: dict[str, Any] = json.loads(path.read_text())
    check_models(output, [known["models"]])
    return known


def finished(names: list[str], seeds: int, output: Path) -> Iterator[Result]:
    """Yield the recipes of which any run has ended, with those runs."""
    for recipe in names:
        folders = [RunDir(output / run_name(recipe, seed)) for seed in range(seeds)]
        summaries = [(folder, folder.read_summary()) for folder in folders]
        runs = [
            (folder, found) for folder, found in summaries if found and found.is_usable and found.metrics_test
        ]
        if runs:
            yield Result(recipe, runs)


def main(
    output: Output = Path("runs/results"),
    seeds: Seeds = 5,
    time_limit: TimeLimit = None,
    recipe: Annotated[list[str] | None, typer.Option(help="Only these recipes; several times.")] = None,
    workers: Annotated[int, typer.Option(min=1)] = 2,
    short: Short = False,
    table: Table = False,
    page: Page = None,
    summary_page: Annotated[
        Path | None, typer.Option(help="Page whose part is replaced by the rewards of a few recipes.")
    ] = None,
) -> None:
    """Train what is missing, seed by seed; print the table and draw the figures."""
    check_page(page, "results")
    check_page(summary_page, "results")
    names, deadline, inputs = recipe or recipes(), deadline_of(time_limit), check_inputs(output)
    for seed in range(0 if table else seeds):
        for name in names:
            if time.monotonic() < deadline:
                folder = output / run_name(name, seed)
                train(
                    config_of(name, seed, output, short=short),
                    workers=workers,
                    run_name=folder.name,
                    resume=(folder / "run.json").exists(),
                    runs_dir=output,
                )
    results = list(finished(names, seeds, output))
    if not results:
        raise typer.BadParameter(f"no run in {output} has ended; start again without --table")
    folder = figures_folder(page, "results", output / "figures")
    figures = [results_figure(results, folder / "gains.png"), *draw_sheets(results, folder)]
    measured = (
        f"Begun on {inputs['date']} with the models {inputs['models']}, on {inputs['num_cores']} CPU cores "
        f"({inputs['processor']})."
    )
    show("results", [results_table(results), metrics_table(results)], figures, page, measured)
    if summary_page:
        shown = [result for name in SUMMARY for result in results if result.recipe == name]
        write_part(summary_page, "results", [markdown_table(summary_table(shown))])


if __name__ == "__main__":
    typer.run(main)
