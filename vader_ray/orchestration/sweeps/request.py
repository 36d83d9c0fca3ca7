"""Checks of what the user requests of a sweep, before any work is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vader_ray.config import ExperimentConfig
from vader_ray.errors import UserError
from vader_ray.orchestration.runs.run_dir import check_folder_name
from vader_ray.orchestration.sweeps.definition import (
    BaseRecipe,
    SweepDefinition,
    Values,
    draw,
    overrides_of,
    trial_name,
)
from vader_ray.training.resolve import resolve_names

_SAMPLES = 16
"""Draws of a search's space that stand for its proposals."""
MAX_COUNT = 100_000
"""Largest number of trials or workers."""
_WORKERS = "runtime.num_workers"


def check_counts(**counts: int | None) -> None:
    """Refuse numbers of trials or workers that are no whole numbers from 1 to `MAX_COUNT`; None is a default.

    Raises:
        UserError: names the argument.
    """
    for name, count in counts.items():
        if count is not None and (type(count) is not int or not 1 <= count <= MAX_COUNT):
            raise UserError(f"{name}={count!r}: give a whole number from 1 to {MAX_COUNT}")


def check_overrides(
    definition: SweepDefinition, recipe: BaseRecipe, overrides: Sequence[str], seed: int
) -> None:
    """Refuse an override that no trial would use, because the sweep sets the same field.

    An override that the sweep's values depend on, such as the weight of a reward that each trial scales, has
    an effect and is kept.

    Raises:
        UserError: names the field.
    """
    for text in overrides:
        path = text.partition("=")[0]
        if path == _WORKERS:
            raise UserError(f"{path}: the trials of a sweep get their workers by --workers-per-trial")
        if (field := _swept(definition, recipe, path, seed)) and not _has_effect(
            definition, recipe, text, field, seed
        ):
            raise UserError(
                f"{path}: each trial of the sweep {definition.name} sets {field} itself, so {text!r} would "
                "have no effect; leave it out, or train this one setting without a sweep"
            )


def _swept(definition: SweepDefinition, recipe: BaseRecipe, path: str, seed: int) -> str | None:
    """Return the field that the trials set, if it is this one or a section around it."""
    fields = definition.settings(_samples(definition, seed)[0], recipe.load())
    return next((field for field in fields if field == path or path.startswith(f"{field}.")), None)


def _has_effect(definition: SweepDefinition, recipe: BaseRecipe, text: str, field: str, seed: int) -> bool:
    """Return whether the value of a field in any trial depends on an override."""
    others = tuple(other for other in recipe.overrides if other != text)
    with_it, without = recipe.load(), replace(recipe, overrides=others).load()
    return any(
        definition.settings(values, with_it)[field] != definition.settings(values, without)[field]
        for values in _samples(definition, seed)
    )


def check_trials(definition: SweepDefinition, recipe: BaseRecipe, config: ExperimentConfig) -> None:
    """Refuse a sweep whose trials can all not work, and names of trials that are no folder's.

    Raises:
        UserError: the reason of the first trial.
    """
    if not definition.space:
        raise UserError(f"sweep {definition.name}: its space is empty; map a setting to its values")
    reasons = list[str]()
    for values in _samples(definition, config.seed):
        check_folder_name(trial_name(values))
        try:
            resolve_names(recipe.load(overrides_of(definition, values, config)), recipe.folder)
        except UserError as error:
            reasons.append(f"{trial_name(values)}: {error}")
        else:
            return
    raise UserError(f"no trial of the sweep {definition.name} can work; {reasons[0]}")


def _samples(definition: SweepDefinition, seed: int) -> list[Values]:
    """Return the values of all trials of a grid, or some draws of a search."""
    return draw(definition, None if definition.search == "grid" else _SAMPLES, seed)
