"""What a sweep asks: a search space over a recipe's fields, and the trials that are drawn from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from ray.tune.search.variant_generator import generate_variants

from vader_ray.config import ExperimentConfig, load

Values = dict[str, Any]
"""Of one trial: swept name → value, e.g. ``{"K": 5, "lr": 0.001}``."""


INTERPOLATED = "interpolated"
"""Swept name, and so the tag in MLflow, of a trial that mixes the adapters of others and trains nothing (`SweepDefinition.shares`)."""


@dataclass(frozen=True)
class SweepDefinition:
    """A question to a recipe. One file of ``sweeps/`` is one of these."""

    name: str
    question: str
    """What the script's ``--help`` says."""
    recipe: str
    """The recipe when none is given."""
    budget: tuple[str, ...]
    """Overrides of that recipe that make a trial a matter of minutes; not applied to another recipe."""
    space: Mapping[str, Any]
    """Swept name → `tune.grid_search` (all values) or a domain of Ray Tune (``tune.loguniform(1e-4, 1e-2)``)."""
    settings: Callable[[Values, ExperimentConfig], dict[str, Any]]
    """The recipe's fields (dotted) that a trial sets, from its values and the recipe of the sweep."""
    num_trials: int | None = None
    """Draws from the domains when the command line says nothing; a pure grid is run whole."""
    learn: bool = False
    """Let Optuna choose each draw by the results so far (TPE), for a space of domains; otherwise draws are independent."""
    stop_early: bool = False
    """Stop trials that fall behind at equal reward queries (ASHA)."""
    curves: bool = False
    """End with each method's best setting, its reward against its costs (figures in ``curves/``), for a space with ``reward``,
    ``method``, ``setting`` and ``seed``."""
    shares: Callable[[Values], Sequence[float]] | None = None
    """Of a trial's values, what shares of several things it has (rewards, say), which add up to one. At the end each mix is
    compared with its competitor without training: the adapters of the trials that have one thing alone, at the same shares."""
    pareto: bool = False
    """End with the trials that no other beats in all rewards of the recipe."""


def overrides_of(
    sweep: SweepDefinition,
    values: Values,
    recipe: ExperimentConfig,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> list[str]:
    """A trial's settings, and more fields, as overrides of the recipe, ``a.b=value``."""
    return [
        f"{path}={json.dumps(value)}" for path, value in (sweep.settings(values, recipe) | dict(more)).items()
    ]


def load_base(
    sweep: SweepDefinition, recipe: str | None, overrides: list[str]
) -> tuple[str, list[str], ExperimentConfig]:
    """The recipe that the trials change: its name, its overrides, and what they give."""
    chosen = [*(sweep.budget if recipe is None else ()), *overrides]
    return recipe or sweep.recipe, chosen, load(recipe or sweep.recipe, chosen)


def wanted_trials(sweep: SweepDefinition, num_trials: int | None) -> int | None:
    """How many trials there shall be, None for the whole grid."""
    return num_trials or sweep.num_trials


def draw(sweep: SweepDefinition, num_trials: int | None, seed: int) -> list[Values]:
    """The values of each trial, all different: the grid, once for each draw from the domains."""
    wanted = wanted_trials(sweep, num_trials)
    random = np.random.RandomState(seed)
    drawn: dict[str, Values] = {}
    for _ in range(wanted or 1):
        for _, values in generate_variants(dict(sweep.space), random_state=random):
            plain = {name: rounded(value) for name, value in values.items()}
            drawn.setdefault(trial_name(plain), plain)
    return list(drawn.values())[:wanted]


def trial_name(values: Values) -> str:
    """What a trial is called: ``K=5,lr=0.001``."""
    return ",".join(f"{name}={value}" for name, value in values.items())


def rounded(value: Any) -> Any:
    """A number of three digits, so that a trial's name says all of it; NumPy's numbers become Python's."""
    plain = value.item() if isinstance(value, np.generic) else value
    return float(f"{plain:.3g}") if isinstance(plain, float) else plain
