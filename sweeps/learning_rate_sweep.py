"""Which learning rate is best? Seven values from 1e-4 to 1e-2, at equal reward queries."""

from __future__ import annotations

from typing import Any

from ray import tune

from vader_ray.config import ExperimentConfig
from vader_ray.orchestration.sweeps.definition import SweepDefinition, Values
from vader_ray.orchestration.sweeps.script import sweep_script


def settings(values: Values, recipe: ExperimentConfig) -> dict[str, Any]:
    """Return the learning rate of AdamW; everything else is the recipe's."""
    return {"optimizer.learning_rate": values["lr"]}


SWEEP = SweepDefinition(
    name="learning_rate_sweep",
    question=__doc__,
    recipe="shapes_hps",
    default_overrides=(
        "num_steps=12",
        "evaluation.every=6",
        "evaluation.num_videos=10",
        "evaluation.num_test_videos=12",
        "checkpoint.every=3",
    ),
    space={"lr": tune.grid_search([1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2])},
    settings=settings,
)

if __name__ == "__main__":
    sweep_script(SWEEP)
