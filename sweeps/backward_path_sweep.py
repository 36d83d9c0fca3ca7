"""Through which denoising steps should the reward's gradient flow, and with which factors?

The published backward paths (docs/backward_paths.md) at equal reward queries. Their costs differ: compare
``cost/denoiser_calls``, too. Paths with the squared distance to the base model (``velocity_matching``,
``ode_adjoint``) have ``algorithm.reference_penalty=0.1``, the others what the recipe has.
"""

from __future__ import annotations

from typing import Any

from ray import tune

from vader_ray.config import ExperimentConfig
from vader_ray.orchestration.sweeps.definition import SweepDefinition, Values
from vader_ray.orchestration.sweeps.script import sweep_script

DEPTHS = {
    "last": 1,
    "uniform": 5,
    "drtune": 3,
    "sparse": 3,
    "bridge": 5,
    "velocity_matching": 5,
    "ode_adjoint": 3,
}
"""Gradient steps of a path where its papers have a number; ``refl``, ``leap`` and ``lagrange`` have their
own."""


def settings(values: Values, recipe: ExperimentConfig) -> dict[str, Any]:
    """Return the path and its number of gradient steps, at most all denoising steps."""
    path = values["path"]
    depth = min(DEPTHS.get(path, 1), recipe.sampling.num_inference_steps)
    own = recipe.algorithm.options.get("reference_penalty", 0.0)
    return {
        "sampling.truncation": path,
        "sampling.truncation_depth": depth,
        "algorithm.reference_penalty": 0.1 if path in ("velocity_matching", "ode_adjoint") else own,
    }


SWEEP = SweepDefinition(
    name="backward_path_sweep",
    question=__doc__,
    recipe="shapes_hps",
    default_overrides=(
        "num_steps=12",
        "evaluation.every=6",
        "evaluation.num_videos=10",
        "evaluation.num_test_videos=12",
        "checkpoint.every=3",
    ),
    space={"path": tune.grid_search([*DEPTHS, "refl", "leap", "lagrange"])},
    settings=settings,
)

if __name__ == "__main__":
    sweep_script(SWEEP)
