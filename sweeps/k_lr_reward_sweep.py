"""Which K, learning rate and reward are best together?

Optuna chooses the trials from the results so far, and trials that fall behind at equal reward queries are
stopped. All trials are compared by one metric that none of them trains: PickScore on the embedded shapes data
set, on another recipe its ``evaluation.select`` (which must not depend on the rewards' weights).
"""

from __future__ import annotations

from typing import Any

from ray import tune

from vader_ray.config import ExperimentConfig
from vader_ray.orchestration.sweeps.definition import SweepDefinition, Values
from vader_ray.orchestration.sweeps.script import sweep_script

WEIGHTS = {"first": (1.0, 0.0), "second": (0.0, 1.0), "both": (0.5, 0.5)}


def settings(values: Values, recipe: ExperimentConfig) -> dict[str, Any]:
    """Return K, the learning rate, and the weights of the recipe's first two rewards: one of them or both."""
    factors = WEIGHTS[values["reward"]]
    weights = {
        f"rewards.{index}.weight": recipe.rewards[index].weight * factor
        for index, factor in enumerate(factors)
    }
    return {"sampling.truncation_depth": values["K"], "optimizer.learning_rate": values["lr"], **weights}


SWEEP = SweepDefinition(
    name="k_lr_reward_sweep",
    question=__doc__,
    recipe="shapes_hps_aesthetic",
    default_overrides=("eval_rewards=[{reward: pickscore, weights: shapes:pickscore}]",
    "evaluation.select=eval/reward/pickscore",
            "num_steps=16", "evaluation.every=2", "evaluation.num_videos=10", "evaluation.num_test_videos=12",
            "checkpoint.every=4",
            "expected_metrics={}"),
    space={"K": tune.choice([1, 2, 5]), "lr": tune.loguniform(2e-4, 5e-3), "reward":
    tune.choice(sorted(WEIGHTS))}, settings=settings, num_trials=8, search="tpe", scheduler="asha",
)  # fmt: skip

if __name__ == "__main__":
    sweep_script(SWEEP)
