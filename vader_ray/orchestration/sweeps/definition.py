"""The definition of a sweep: a search space over a recipe's fields, and the trials drawn from it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from ray.tune.search.sample import Domain
from ray.tune.search.variant_generator import generate_variants

from vader_ray.config import ExperimentConfig, load, override
from vader_ray.config.experiment import MAX_NAME_LENGTH, NAME_PATTERN
from vader_ray.errors import UserError

Values = dict[str, Any]
"""Swept name → value of one trial, e.g. ``{"K": 5, "lr": 0.001}``."""


@dataclass(frozen=True)
class SweepDefinition:
    """Definition of a sweep: base recipe, search space and budget. Each file of ``sweeps/`` holds one."""

    name: str
    question: str
    """Help text of the script."""
    recipe: str
    """Recipe to use if the user names none."""
    default_overrides: tuple[str, ...]
    """Overrides that shorten the trials of that recipe to minutes; not applied to another recipe."""
    space: Mapping[str, Any]
    """Swept name → `tune.grid_search` (all values) or a domain of Ray Tune (``tune.loguniform(1e-4,
    1e-2)``)."""
    settings: Callable[[Values, ExperimentConfig], dict[str, Any]]
    """Returns the recipe's fields (dotted) that a trial sets, from its values and the sweep's recipe."""
    search: Literal["grid", "random", "tpe"] = "grid"
    """``grid``: all combinations; ``random``: independent draws, each with all combinations of the grid's
    names; ``tpe``: Optuna proposes each trial from the results so far (tree-structured Parzen estimator)."""
    num_trials: int | None = None
    """Default number of trials; None runs the whole grid."""
    scheduler: Literal["asha"] | None = None
    """``asha`` stops trials that fall behind at equal reward queries."""
    soup_weights: Callable[[Values], Sequence[float]] | None = None
    """Returns a trial's weights of several ingredients, e.g. rewards; their sum is one.

    At the end, every trial with several ingredients is compared with an adapter soup: the adapters of the
    single ingredients, merged with the same weights.
    """
    pareto: bool = False
    """Print the trials on the Pareto front of the recipe's rewards."""

    def __post_init__(self) -> None:
        if len(self.name) > MAX_NAME_LENGTH or not re.fullmatch(NAME_PATTERN, self.name):
            raise UserError(
                f"sweep {self.name[:MAX_NAME_LENGTH]!r}: the name is that of a folder; begin with a letter "
                "or a digit, go on with letters, digits, '.', '_' and '-', at most "
                f"{MAX_NAME_LENGTH} characters"
            )
        for name, domain in self.space.items():
            if not isinstance(name, str) or not name or not (_is_grid(domain) or isinstance(domain, Domain)):
                raise UserError(
                    f"sweep {self.name}: {name!r}: {str(domain)[:100]} gives no values; map each swept name "
                    "to tune.grid_search([…]) or to a domain such as tune.loguniform(1e-4, 1e-2)"
                )
        grid = [name for name, domain in self.space.items() if isinstance(domain, dict)]
        others = [name for name in self.space if name not in grid]
        if self.search == "grid" and others:
            raise UserError(
                f"sweep {self.name}: {others[0]!r} is no tune.grid_search; set search to 'random' or 'tpe'"
            )
        if self.search == "tpe" and grid:
            raise UserError(f"sweep {self.name}: {grid[0]!r} is a grid; give search='tpe' domains only")


def _is_grid(domain: object) -> bool:
    return isinstance(domain, dict) and bool(domain.get("grid_search"))


@dataclass(frozen=True)
class BaseRecipe:
    """The recipe that the trials of a sweep change."""

    source: str | ExperimentConfig
    """Name of a packaged recipe, path of a YAML file, or a recipe that is loaded already."""
    overrides: tuple[str, ...]

    @classmethod
    def of(
        cls,
        definition: SweepDefinition,
        source: str | ExperimentConfig | None,
        overrides: Sequence[str] = (),
    ) -> BaseRecipe:
        """Return the sweep's own recipe with its default overrides, or the given one; with more overrides."""
        if source is None:
            return cls(definition.recipe, (*definition.default_overrides, *overrides))
        return cls(source, tuple(overrides))

    @property
    def folder(self) -> Path | None:
        """Folder at which the recipe's relative paths start, if it is a file."""
        is_file = isinstance(self.source, str) and Path(self.source).is_file()
        return Path(str(self.source)).resolve().parent if is_file else None

    def load(self, more: Sequence[str] = ()) -> ExperimentConfig:
        """Return the recipe with its overrides and more of them applied."""
        if isinstance(self.source, ExperimentConfig):
            return override(self.source, [*self.overrides, *more])
        return load(self.source, [*self.overrides, *more])


def overrides_of(
    definition: SweepDefinition,
    values: Values,
    recipe: ExperimentConfig,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> list[str]:
    """Return a trial's settings, and more fields, as overrides of the recipe, ``a.b=value``."""
    fields = definition.settings(values, recipe) | dict(more)
    return [f"{path}={json.dumps(value)}" for path, value in fields.items()]


def draw(definition: SweepDefinition, num_trials: int | None, seed: int) -> list[Values]:
    """Return the values of each trial, all different: the grid, once for each draw from the domains."""
    wanted = num_trials or definition.num_trials
    random = np.random.RandomState(seed)
    drawn: dict[str, Values] = {}
    for _ in range(wanted or 1):
        for _, values in generate_variants(dict(definition.space), random_state=random):
            plain = {name: rounded(value) for name, value in values.items()}
            drawn.setdefault(trial_name(plain), plain)
    return list(drawn.values())[:wanted]


def trial_name(values: Values) -> str:
    """Return the name of the trial with these values: ``K=5,lr=0.001``."""
    return ",".join(f"{name}={value}" for name, value in values.items())


def rounded(value: Any) -> Any:
    """Round a float to three digits, which a trial's name can hold; NumPy numbers become Python's."""
    plain = value.item() if isinstance(value, np.generic) else value
    return float(f"{plain:.3g}") if isinstance(plain, float) else plain
