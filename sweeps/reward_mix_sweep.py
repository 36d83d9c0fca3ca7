"""Which mix of rewards is best? Prints the Pareto front: the mixes that no other mix beats in all rewards.

Each mix gives human preference, aesthetics and motion (a reward of the whole clip) weights that sum to one,
and is compared with a soup of the single-reward adapters with the same weights, which trains nothing. On
another recipe, the mixes scale the weights of its first three rewards.
"""

from __future__ import annotations

from typing import Any

from ray import tune

from vader_ray.config import ExperimentConfig
from vader_ray.orchestration.sweeps.definition import SweepDefinition, Values
from vader_ray.orchestration.sweeps.script import sweep_script

# The weights bring the three rewards to about one scale. No trial trains PickScore, so it selects.
REWARDS = """rewards=[{reward: hps, weights: shapes:hps, weight: 1.0},
{reward: aesthetic, weights: shapes:aesthetic, weight: 0.1},
{reward: motion, weight: 1.0}]"""
MIXES = ["1:0:0", "0:1:0", "0:0:1", "1:1:0", "1:0:1", "0:1:1", "1:1:1", "2:1:1"]


def soup_weights(values: Values) -> list[float]:
    """Return the weight of each reward in a mix; they sum to one."""
    parts = [float(part) for part in values["mix"].split(":")]
    return [part / sum(parts) for part in parts]


def settings(values: Values, recipe: ExperimentConfig) -> dict[str, Any]:
    """Return the reward weights of a mix: its weights times those of the recipe."""
    return {
        f"rewards.{index}.weight": recipe.rewards[index].weight * weight
        for index, weight in enumerate(soup_weights(values))
    }


SWEEP = SweepDefinition(
    name="reward_mix_sweep",
    question=__doc__,
    recipe="shapes_hps_aesthetic",
    default_overrides=(REWARDS, "eval_rewards=[{reward: pickscore, weights: shapes:pickscore}]",
    "evaluation.select=eval/reward/pickscore",
            "num_steps=12", "evaluation.every=6", "evaluation.num_videos=10", "evaluation.num_test_videos=12",
            "checkpoint.every=3",
            "expected_metrics={}"),
    space={"mix": tune.grid_search(MIXES)},
    settings=settings,
    soup_weights=soup_weights,
    pareto=True,
)  # fmt: skip

if __name__ == "__main__":
    sweep_script(SWEEP)
