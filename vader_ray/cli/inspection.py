"""Commands that inspect recipes, plugins and past runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from vader_ray.cli.new_recipe import to_yaml
from vader_ray.cli.recipes import Overrides, Recipe, Workers, load_recipe
from vader_ray.cli.sweeps import describe_sweep, sweep_names
from vader_ray.config import (
    ExperimentConfig,
    describe_recipe,
    list_settings,
    locate,
    model_names,
    recipe_names,
)
from vader_ray.display import Display, display_stages
from vader_ray.errors import UserError, did_you_mean
from vader_ray.imports import fast_imports
from vader_ray.plugin_sources import ClassSource, Value
from vader_ray.plugins import ALGORITHMS, FAMILIES, METRICS, REWARDS, Registry
from vader_ray.preflight.devices import check_devices
from vader_ray.stages import announce

if TYPE_CHECKING:
    from vader_ray.orchestration.runs.dry_run import DryRun

SETTING_WIDTH = 60
"""Characters to which `show` pads a setting."""
CLUSTER_SUFFIXES = (".yaml", ".yml", ".json", ".sbatch", ".sh")


def check(
    recipe: Recipe,
    overrides: Overrides = None,
    workers: Workers = None,
    devices: Annotated[
        str | None,
        typer.Option(
            help="Estimate a step's memory and time on these devices, without a GPU and without weights: "
            "h100,a100-40,24GB or cpu. With a number of GPUs in front, 8xrtx4090,1x24GB, settings that fit "
            "are chosen."
        ),
    ] = None,
) -> None:
    """Validate a recipe, print its contents, and compute one step's gradient on every worker, without update.

    With --devices nothing is loaded and no GPU is used: memory is counted, seconds are estimated.
    Given a file of clusters/ instead, check that it is filled in, well-formed and made for the installed
    versions.
    """
    if _is_cluster_file(Path(recipe)):
        _check_cluster_file(Path(recipe))
        return
    if devices is not None:
        check_devices(devices.split(","))
    with display_stages(sys.stdout, f"check {recipe}: checking the recipe") as display:
        config = load_recipe(recipe, overrides, workers)
        if devices is not None:
            _estimate(config, devices.split(","), display)
            return
        _print_contents(config)
        result = _dry_run(config)
    _print_dry_run(config, result)


def _is_cluster_file(path: Path) -> bool:
    if path.suffix not in CLUSTER_SUFFIXES or not path.is_file():
        return False
    from vader_ray.orchestration.clusters.cluster_files import is_cluster_file

    return is_cluster_file(path)


def _check_cluster_file(path: Path) -> None:
    from vader_ray.orchestration.clusters.cluster_files import check_cluster_file

    print(check_cluster_file(path))


def _estimate(config: ExperimentConfig, devices: list[str], display: Display) -> None:
    announce("counting the memory and operations of a step")
    with fast_imports():
        from vader_ray.preflight.memory_report import memory_report

    for part in memory_report(config, devices):
        display.print(part)


def _dry_run(config: ExperimentConfig) -> DryRun:
    announce("importing Ray")
    with fast_imports():
        from vader_ray.orchestration.runs.dry_run import dry_run

    return dry_run(config)


def _print_dry_run(config: ExperimentConfig, result: DryRun) -> None:
    step, workers = result.step, config.runtime.num_workers
    print(
        f"adapter {step.num_adapter_parameters:,} parameters, gradient norm {step.gradient_norm:.3g}, "
        "finite and not zero"
    )
    print(
        f"memory  {step.peak_gib:.2f} GiB at the peak of one worker, {step.weights_gib:.2f} GiB of it weights"
    )
    minutes = step.step_seconds * config.num_steps / 60
    print(f"time    {step.step_seconds:.1f} s per step, about {minutes:.0f} min without evaluations")
    if not result.equal_on_all_workers:
        raise UserError(
            "the workers' summed gradients differ: their process group does not work; "
            "check the network between the nodes"
        )
    print(f"workers {workers}, with bit-identical gradients")


def _print_contents(config: ExperimentConfig) -> None:
    """Print the weights, rewards and plan of a recipe."""
    print(f"model   {config.model.family}: {locate(config.model.weights)}")
    for kind, specs in (("reward", config.rewards), ("eval", config.eval_rewards)):
        for spec in specs:
            options = ", ".join(f"{name}={locate(str(value))}" for name, value in spec.options.items())
            details = f"weight {spec.weight:g}, frames {spec.frames}"
            print(f"{kind:7} {spec.name} ({details}): {options or 'no options'}")
    print(f"metrics {', '.join(metric.name for metric in config.all_metrics())}")
    sampling, workers = config.sampling, config.runtime.num_workers
    choice = sampling.truncation if isinstance(sampling.truncation, str) else "listed"
    print(
        f"plan    {choice} {sampling.max_grad_steps()} of {sampling.num_inference_steps} "
        f"denoising steps, {config.num_steps} steps of {config.videos_per_step} videos on {workers} workers"
    )


def show(recipe: Recipe, overrides: Overrides = None) -> None:
    """Print every setting of a recipe as KEY=VALUE, with the file that its value comes from."""
    for each in list_settings(recipe, overrides or ()):
        setting = f"{each.path}={to_yaml(each.value)}"
        print(f"{setting:{SETTING_WIDTH}}  # {each.origin}")


def fetch(recipe: Recipe, overrides: Overrides = None) -> None:
    """Download all files of a recipe to the Hugging Face cache and load each reward and metric once.

    Afterwards the recipe runs on machines without internet access.
    """
    with display_stages(sys.stdout, f"fetch {recipe}: checking the recipe") as display:
        config = load_recipe(recipe, overrides)
        from vader_ray import metrics, models, rewards

        for spec in (*config.rewards, *config.eval_rewards):
            announce(f"downloading the reward {spec.name}")
            rewards.build(spec, device="cpu")
            display.log(f"reward  {spec.name}: complete, it loads")
        for metric in config.eval_metrics:
            announce(f"downloading the metric {metric.name}")
            metrics.build(metric, device="cpu")
            display.log(f"metric  {metric.name}: complete, it loads")
        announce(f"downloading the model {config.model.family}")
        display.log(f"model   {config.model.family}: complete in {models.fetch(config.model)}")


def list_(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="models, rewards, metrics, recipes, algorithms or sweeps")
    ],
) -> None:
    """List the models, rewards, metrics, recipes, algorithms or sweeps that can be named.

    Recipes called models/NAME have the settings of a model and no reward: recipes extend them.
    """
    described: dict[str, Callable[[], dict[str, str]]] = {
        "models": lambda: _describe_all(FAMILIES, lambda source: source.summary),
        "rewards": lambda: _describe_all(REWARDS, _describe_reward),
        "metrics": lambda: _describe_all(METRICS, _describe_metric),
        "recipes": lambda: {name: describe_recipe(name) for name in (*recipe_names(), *model_names())},
        "algorithms": lambda: _describe_all(ALGORITHMS, lambda source: source.summary),
        "sweeps": lambda: {name: describe_sweep(name) for name in sweep_names()},
    }
    if kind not in described:
        nearest = did_you_mean(kind, described)
        raise UserError(f"{kind!r} cannot be listed; {nearest}choose one of {', '.join(described)}")
    table = Table(show_header=False, box=None)
    for name, description in described[kind]().items():
        table.add_row(name, description)
    Console(highlight=False).print(table)


def _describe_all(registry: Registry, describe: Callable[[ClassSource], str]) -> dict[str, str]:
    return {name: describe(registry.read(name)) for name in registry.names()}


def _describe_reward(reward: ClassSource) -> str:
    """Return a reward's granularity, unit and default weights."""
    of = reward.attributes
    return f"per {of['granularity']}; {of['unit']}\nweights: {_describe_weights(of)}"


def _describe_weights(of: Mapping[str, Value]) -> str:
    """Return the default weights of a plugin and their licence."""
    return f"{of['default_weights']} ({of['licence']})" if of.get("default_weights") else "no network"


def _describe_metric(metric: ClassSource) -> str:
    """Return a metric's description, unit, direction and default weights."""
    of = metric.attributes
    direction = "higher" if of["higher_is_better"] else "lower"
    return f"{metric.summary}\n{of['unit']}; {direction} is better\nweights: {_describe_weights(of)}"


def report(
    targets: Annotated[
        list[str],
        typer.Argument(help="Experiments, sweeps or runs: names, folders, or ids of MLflow runs."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file.")] = Path("report.html"),
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            help="MLflow server or database. Default: MLFLOW_TRACKING_URI, else mlflow.db in this folder."
        ),
    ] = None,
) -> None:
    """Write a self-contained HTML page about past runs, from MLflow alone, and its figures next to it."""
    with display_stages(sys.stderr, f"report on {', '.join(targets)}: looking them up in MLflow"):
        with fast_imports():
            from vader_ray.orchestration.reporting.html_report import write_report

        page = write_report(targets, output, tracking_uri)
    print(page)
