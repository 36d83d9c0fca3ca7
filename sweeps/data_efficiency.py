"""How many reward queries does VADER need, compared with methods without reward gradients?

The paper's Figure 7: a reward on held-out prompts against reward queries and against seconds, at equal
numbers of queries, over seeds, for VADER, DDPO and Diffusion-DPO. Each method has two settings; the figures
in ``curves/`` show the better one.
"""

from __future__ import annotations

from typing import Any

from ray import tune

from vader_ray.config import ExperimentConfig
from vader_ray.orchestration.sweeps.definition import SweepDefinition, Values
from vader_ray.orchestration.sweeps.script import sweep_script

QUERIES = 128
OTHER = {"hps": "aesthetic", "aesthetic": "hps"}
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "vader": {"slow": {"optimizer.learning_rate": 1e-3}, "fast": {"optimizer.learning_rate": 3e-3}},
    "ddpo": {
        "slow": {"optimizer.learning_rate": 1e-3, "algorithm.num_updates": 1, "algorithm.clip_range": 1e-3},
        "fast": {"optimizer.learning_rate": 1e-3, "algorithm.num_updates": 2, "algorithm.clip_range": 1e-3},
    },
    "dpo": {
        "slow": {"optimizer.learning_rate": 3e-4, "algorithm.num_draws": 4, "algorithm.beta": 1000},
        "fast": {"optimizer.learning_rate": 1e-3, "algorithm.num_draws": 4, "algorithm.beta": 100},
    },
}


def settings(values: Values, recipe: ExperimentConfig) -> dict[str, Any]:
    """Return steps of 4 videos for VADER, through all denoising steps, and of 16 videos for the others."""
    method, num_videos = values["method"], 4 if values["method"] == "vader" else 16
    rewards = [
        {"reward": name, "weights": f"shapes:{name}"} for name in (values["reward"], OTHER[values["reward"]])
    ]
    plan = {"sampling.truncation_depth": recipe.sampling.num_inference_steps} if method == "vader" else {}
    steps = {
        "videos_per_step": num_videos,
        "num_steps": QUERIES // num_videos,
        "evaluation.every": 2 if method == "vader" else 1,
    }
    own = SETTINGS[method][values["setting"]]
    return (
        {
            "seed": values["seed"],
            "rewards": rewards[:1],
            "eval_rewards": rewards[1:],
            "algorithm.name": method,
        }
        | plan
        | steps
        | own
    )


SWEEP = SweepDefinition(
    name="data_efficiency",
    question=__doc__,
    recipe="shapes_hps",
    default_overrides=("sampling.num_frames=2", "sampling.num_inference_steps=4", "sampling.eta=1",
    "evaluation.num_videos=12", "prompts.test=null",
            "evaluation.num_shown=2", "eval_metrics=[]", "evaluation.select=eval/objective",
            "runtime.prefix_batch_size=16", "runtime.micro_batch_size=16", "runtime.decode_chunk_size=2",
            "checkpoint.every=8", "expected_metrics={}"),
    space={"seed": tune.grid_search([0, 1, 2]), "reward": tune.grid_search(["hps", "aesthetic"]),
           "method": tune.grid_search(list(SETTINGS)), "setting": tune.grid_search(["slow", "fast"])},
    settings=settings,
    plot_curves=True,
)  # fmt: skip

if __name__ == "__main__":
    sweep_script(SWEEP)
