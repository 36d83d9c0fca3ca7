"""How many denoising steps should carry the reward's gradient?

The paper's ablation: the last K steps for K = 1, 2, 5, 10, the last k steps with random k (AlignProp), and 5
steps spread uniformly over all denoising steps, at equal reward queries.
"""

from __future__ import annotations

from typing import Any

from ray import tune

from vader_ray.config import ExperimentConfig
from vader_ray.orchestration.sweeps.definition import SweepDefinition, Values
from vader_ray.orchestration.sweeps.script import sweep_script


def settings(values: Values, recipe: ExperimentConfig) -> dict[str, Any]:
    """Return K as a truncation; ``random`` draws 1…N gradient steps, ``uniform`` has as many as K = 5."""
    num_steps = recipe.sampling.num_inference_steps
    truncation, depth = {"random": ("random", num_steps), "uniform": ("uniform", min(5, num_steps))}.get(
        values["K"], ("last", values["K"])
    )
    return {"sampling.truncation": truncation, "sampling.truncation_depth": depth}


SWEEP = SweepDefinition(
    name="hps_k_sweep",
    question=__doc__,
    recipe="shapes_hps",
    default_overrides=(
        "num_steps=12",
        "evaluation.every=6",
        "evaluation.num_videos=10",
        "evaluation.num_test_videos=12",
        "checkpoint.every=3",
    ),
    space={"K": tune.grid_search([1, 2, 5, 10, "random", "uniform"])},
    settings=settings,
)

if __name__ == "__main__":
    sweep_script(SWEEP)
