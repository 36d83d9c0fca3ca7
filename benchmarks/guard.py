"""Simulate the guard: false alarms without any real fall, and the power to notice one.

    python -m benchmarks.guard        # three minutes on one core

Values of prompts are correlated from one evaluation to the next as in a run: each prompt has its own level,
training moves it by a random walk, and noise is added. The fall has the size of that in docs/report.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import typer
from numpy.typing import NDArray

from vader_ray.config import ExperimentConfig, load
from vader_ray.training.checkpoint import State
from vader_ray.training.evaluation import Evaluation
from vader_ray.training.guard import apply_guard

Kind: TypeAlias = Literal["normal", "exponential"]
"""Distribution of levels, moves and noise."""
Values: TypeAlias = NDArray[np.float64]
"""Values of one metric, ``(evaluations, prompts)``, that before training included."""
FALL = 0.84
"""Fall of the held-out reward in docs/report.md, in standard deviations of a prompt's difference."""


def guarded(num_evaluations: int, num_metrics: int = 1, **guard: Any) -> ExperimentConfig:
    """Return a recipe with this number of evaluations after the first one, and of guarded metrics."""
    metrics = ["eval/reward/aesthetic", "eval/objective"][:num_metrics]
    changes = {"num_steps": num_evaluations, "evaluation.every": 1, "guard.metrics": metrics}
    return load("shapes_hps", changes | {f"guard.{name}": value for name, value in guard.items()})


def correlated_evaluations(
    random: np.random.Generator, num_prompts: int, num_evaluations: int, kind: Kind
) -> Values:
    """Draw the values of a metric in a run without any real fall."""

    def draw(*shape: int) -> Values:
        return random.normal(size=shape) if kind == "normal" else random.exponential(size=shape) - 1

    walk = np.cumsum(0.3 * draw(num_evaluations + 1, num_prompts), axis=0)
    noise = 0.7 * draw(num_evaluations + 1, num_prompts)
    values: Values = 2 * draw(1, num_prompts) + walk + noise
    return values


def with_fall(values: Values, evaluation: int) -> Values:
    """Lower the values from one evaluation on."""
    fallen = values.copy()
    fallen[evaluation:] -= FALL * np.std(values[evaluation] - values[evaluation - 1], ddof=1)
    return fallen


def first_alarm(config: ExperimentConfig, metrics: Sequence[Values]) -> int | None:
    """Return the index of the evaluation in which the guard fires; None if it does not."""
    state = State()
    for step, values in enumerate(zip(*metrics, strict=True)):
        state.step = step
        named = {name: list(each) for name, each in zip(config.guard_metrics(), values, strict=True)}
        evaluation = Evaluation({}, {}, {}, named, (), {}, frozenset())
        if apply_guard(config, evaluation, state)[0]["guard/fired"]:
            return step
    return None


def false_alarms(
    num_runs: int, num_evaluations: int, num_prompts: int, kind: Kind, num_metrics: int = 1
) -> float:
    """Return the share of runs without any real fall in which the guard fires."""
    random, config = np.random.default_rng(0), guarded(num_evaluations, num_metrics)
    alarms = [
        first_alarm(
            config,
            [correlated_evaluations(random, num_prompts, num_evaluations, kind) for _ in range(num_metrics)],
        )
        for _ in range(num_runs)
    ]
    return 1 - alarms.count(None) / num_runs


def power(num_runs: int, num_prompts: int, kind: Kind, num_metrics: int = 1) -> float:
    """Return the share of runs in which a fall in the fifth of eight evaluations is noticed by the sixth.

    Args:
        num_metrics: number of guarded metrics, of which one falls.
    """
    random, config = np.random.default_rng(0), guarded(8, false_alarm_rate=0.05 / num_metrics)
    noticed = [
        first_alarm(config, [with_fall(correlated_evaluations(random, num_prompts, 6, kind), 5)]) in (5, 6)
        for _ in range(num_runs)
    ]
    return sum(noticed) / num_runs


def main() -> None:
    """Print both tables."""
    kinds: tuple[Kind, ...] = ("normal", "exponential")
    for num_evaluations, num_runs in ((5, 1500), (20, 1500), (50, 1500)):
        shares = (f"{kind} {false_alarms(num_runs, num_evaluations, 12, kind):.1%}" for kind in kinds)
        print(
            f"false alarms, 12 prompts, {num_evaluations} evaluations, {num_runs} runs: {', '.join(shares)}"
        )
    for num_prompts in (8, 12, 16, 24, 30):
        for num_metrics in (1, 3):
            shares = (f"{kind} {power(100, num_prompts, kind, num_metrics):.0%}" for kind in kinds)
            print(f"power, {num_prompts} prompts, {num_metrics} metrics: {', '.join(shares)}")


if __name__ == "__main__":
    typer.run(main)
