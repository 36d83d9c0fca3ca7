"""The recipe argument of the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vader_ray.config import ExperimentConfig, list_settings, load, recipe_names
from vader_ray.console import OVERRIDES
from vader_ray.errors import UserError
from vader_ray.plugins import ALGORITHMS, AUTO_FAMILY, FAMILIES, METRICS, REWARDS

ADAPTER_HELP = (
    "A saved adapter: a folder, OWNER/NAME on the Hugging Face hub, or the .pt file of a peft state dict."
)


def _complete_setting(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the settings that begin with what was typed, of the command's recipe if it has one."""
    try:
        settings = list_settings(ctx.params.get("recipe") or recipe_names()[0])
    except UserError:
        return []
    return [f"{each.path}=" for each in settings if each.path.startswith(incomplete)]


Recipe = Annotated[
    str,
    typer.Argument(
        help="Name of a packaged recipe (see `vader-ray list recipes`), or a YAML file.",
        autocompletion=recipe_names,
    ),
]
Overrides = Annotated[list[str] | None, typer.Argument(**OVERRIDES, autocompletion=_complete_setting)]
Workers = Annotated[
    int | None, typer.Option("--workers", "-w", help="Ray Train workers; short for runtime.num_workers=N.")
]
AdapterOption = Annotated[
    Path | None, typer.Option("--adapter", help=f"{ADAPTER_HELP} Default: the pretrained model.")
]


def load_recipe(recipe: str, overrides: list[str] | None, workers: int | None = None) -> ExperimentConfig:
    """Load a recipe and resolve its names, before any framework is imported that only a run needs.

    Raises:
        UserError: one line per problem.
    """
    more = [] if workers is None else [f"runtime.num_workers={workers}"]
    config = load(recipe, [*(overrides or []), *more])
    _check_names(config)
    from vader_ray.training.resolve import resolve_names

    return resolve_names(config, Path(recipe).resolve().parent if Path(recipe).is_file() else None)


def _check_names(config: ExperimentConfig) -> None:
    """Refuse names of plugins that do not exist, without the seconds that their imports take."""
    if config.model.family != AUTO_FAMILY:
        FAMILIES.check_name(config.model.family)
    ALGORITHMS.check_name(config.algorithm.name)
    for reward in config.reward_names():
        REWARDS.check_name(reward)
    for metric in config.eval_metrics:
        METRICS.check_name(metric.metric)
