"""Which K, learning rate and reward together? Optuna chooses by the results so far; trials that
fall behind at equal reward queries are stopped.

Every trial is judged by the same measure that none trains: PickScore on the embedded shapes data set, on another recipe its
``evaluation.select`` (name one that does not depend on the rewards' weights).
"""

from __future__ import annotations

from typing import Any

from ray import tune

from vader_ray.cli import sweep_script
from vader_ray.config import ExperimentConfig
from vader_ray.orchestration.sweeps.definition import SweepDefinition, Values

WEIGHTS = {"first": (1.0, 0.0), "second": (0.0, 1.0), "both": (0.5, 0.5)}


def settings(values: Values, recipe: ExperimentConfig) -> dict[str, Any]:
    """K last steps, the learning rate, and the first, the second or both of the recipe's first two rewards."""
    shares = WEIGHTS[values["reward"]]
    weights = {
        f"rewards.{place}.weight": recipe.rewards[place].weight * share for place, share in enumerate(shares)
    }
    return {"sampling.truncation_depth": values["K"], "optimizer.learning_rate": values["lr"], **weights}


SWEEP = SweepDefinition(
    name="k_lr_reward_sweep",
    question=__doc__,
    recipe="shapes_hps_aesthetic",
    budget=("eval_rewards=[{reward: pickscore, weights: shapes:pickscore}]", "evaluation.select=eval/reward/pickscore",
            "num_steps=16", "evaluation.every=2", "evaluation.num_videos=10", "checkpoint.every=4", "expected_metrics={}"),
    space={"K": tune.choice([1, 2, 5]), "lr": tune.loguniform(2e-4, 5e-3), "reward": tune.choice(sorted(WEIGHTS))},
    settings=settings,
    num_trials=8,
    learn=True,
    stop_early=True,
)  # fmt: skip

if __name__ == "__main__":
    sweep_script(SWEEP)
