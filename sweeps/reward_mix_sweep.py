"""Which mix of rewards? Ends with the Pareto front: the mixes that no other beats in all rewards.

Each mix has a competitor that trains nothing: the adapters of the single rewards, interpolated at the same shares.

Shares of human preference, aesthetics and motion (a reward of the whole clip) that add up to one. On another recipe, the
shares weigh its first three rewards on top of its own weights.
"""

from __future__ import annotations

from typing import Any

from ray import tune

from vader_ray.cli import sweep_script
from vader_ray.config import ExperimentConfig
from vader_ray.orchestration.sweeps.definition import SweepDefinition, Values

# Weights that bring the three to about one scale. PickScore is trained by nobody, so it may choose.
REWARDS = """rewards=[{reward: hps, weights: shapes:hps, weight: 1.0},
{reward: aesthetic, weights: shapes:aesthetic, weight: 0.1},
{reward: motion, weight: 1.0}]"""
MIXES = ["1:0:0", "0:1:0", "0:0:1", "1:1:0", "1:0:1", "0:1:1", "1:1:1", "2:1:1"]


def shares(values: Values) -> list[float]:
    """Of each reward; they add up to one."""
    parts = [float(part) for part in values["mix"].split(":")]
    return [part / sum(parts) for part in parts]


def settings(values: Values, recipe: ExperimentConfig) -> dict[str, Any]:
    """Weight of each reward: its share times its weight in the recipe."""
    return {
        f"rewards.{place}.weight": recipe.rewards[place].weight * share
        for place, share in enumerate(shares(values))
    }


SWEEP = SweepDefinition(
    name="reward_mix_sweep",
    question=__doc__,
    recipe="shapes_hps_aesthetic",
    budget=(REWARDS, "eval_rewards=[{reward: pickscore, weights: shapes:pickscore}]", "evaluation.select=eval/reward/pickscore",
            "num_steps=12", "evaluation.every=6", "evaluation.num_videos=10", "checkpoint.every=3", "expected_metrics={}"),
    space={"mix": tune.grid_search(MIXES)},
    settings=settings,
    shares=shares,
    pareto=True,
)  # fmt: skip

if __name__ == "__main__":
    sweep_script(SWEEP)
