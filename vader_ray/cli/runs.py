"""Commands that train, evaluate and generate. What imports a framework is imported when it is used."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from vader_ray.cli.recipes import AdapterOption, Overrides, Recipe, Workers, load_recipe
from vader_ray.console import RunsDir, Storage
from vader_ray.display import display_stages
from vader_ray.files import write_text
from vader_ray.imports import fast_imports
from vader_ray.outputs import check_output, explain_write_errors
from vader_ray.stages import announce

if TYPE_CHECKING:
    from vader_ray.orchestration.runs.summary import RunSummary


def train(
    recipe: Recipe,
    overrides: Overrides = None,
    workers: Workers = None,
    run_name: Annotated[
        str | None,
        typer.Option(help="Name of the run's folder; the name of an existing run continues that run."),
    ] = None,
    resume: Annotated[
        bool, typer.Option(help="Continue the named run, or the recipe's latest unfinished one.")
    ] = False,
    runs_dir: RunsDir = Path("runs"),
    storage: Storage = None,
) -> None:
    """Align a model with reward gradients on Ray Train, tracked by MLflow. Prints the run's folder last."""
    with display_stages(sys.stdout, f"train {recipe}: checking the recipe"):
        config = load_recipe(recipe, overrides, workers)
        announce("importing Ray and MLflow")
        with fast_imports():
            from vader_ray.orchestration.runs.launch import train_run

        summary = train_run(config, runs_dir=runs_dir, run_name=run_name, resume=resume, storage=storage)
    _print_summary(summary)
    print(summary.path)


def _print_summary(summary: RunSummary) -> None:
    from vader_ray.orchestration.runs.summary import OPTIMISTIC, REWARD
    from vader_ray.orchestration.tracking.pages import how_to_open

    results = summary.results
    kept = f", best adapter (step {summary.best_step})" if results.split == "test" else ""
    costs = f"{summary.steps} steps, {summary.reward_queries} reward queries"
    costs = f"{summary.steps} steps, {summary.reward_queries} reward queries"
    title = f"{results.split.capitalize()} prompts, {costs}{kept}"
    table = Table(title=title, title_justify="left")
    table.add_column("reward or metric")
    for heading in ("before", "after", "gain (95 % interval)"):
        table.add_column(heading, justify="right")
    for metric in (*(f"{REWARD}{name}" for name in results.rewards), *results.metrics):
        gain = results.gains.get(metric)
        change = f"{gain.mean:+.4f} ({gain.low:+.4f} to {gain.high:+.4f})" if gain else ""
        values = (f"{means[metric]:.4f}" for means in (results.before, results.after))
        table.add_row(metric.removeprefix(REWARD).removeprefix("eval/"), *values, change)
    Console(highlight=False).print(table)
    if results.split == "validation":
        print(OPTIMISTIC)
    for alarm in summary.alarms:
        print(alarm)
    for metric, lowest in summary.expected_metrics.items():
        reached = "reached" if summary.reached[metric] else "NOT REACHED"
        print(f"{metric} of at least {lowest}: {reached}")
    print(f"before and after: {summary.before_after}")
    print(f"videos:           {summary.gallery} (mp4 files in {summary.path / 'videos'})")
    print(f"MLflow:           {how_to_open(summary.tracking_uri, summary.mlflow_experiment_id)}")


def evaluate(
    recipe: Recipe,
    overrides: Overrides = None,
    adapter: AdapterOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write the metrics to this JSON file.")
    ] = None,
) -> None:
    """Print the metrics of the recipe's validation videos, with or without an adapter, in this process."""
    if output is not None:
        check_output(output)
    with display_stages(sys.stderr, f"evaluate {recipe}: checking the recipe"):
        config = load_recipe(recipe, overrides)
        announce("importing diffusers")
        with fast_imports():
            from vader_ray.training.inference import evaluate_adapter

        metrics = evaluate_adapter(config, adapter)
    for name, value in metrics.items():
        print(f"{name:32} {value:.4f}")
    if output is not None:
        with explain_write_errors(output):
            write_text(output, json.dumps(metrics, indent=2) + "\n")


def generate(
    recipe: Recipe,
    prompt: Annotated[str, typer.Argument(help="Text of the video.")],
    overrides: Overrides = None,
    adapter: AdapterOption = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="The mp4 file.")] = Path("video.mp4"),
) -> None:
    """Write an mp4 file of a prompt with the recipe's model, with or without an adapter."""
    with display_stages(sys.stderr, f"generate with {recipe}: checking the recipe"):
        config = load_recipe(recipe, overrides)
        announce("importing diffusers")
        with fast_imports():
            from vader_ray.training.inference import generate_video

        generate_video(config, prompt, adapter, seed, output)
    print(output.resolve())
