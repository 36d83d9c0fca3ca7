"""Train a packaged recipe on a reward of your own, on Ray Train workers, tracked by MLflow.

    python examples/own_reward.py

A reward is any function of frames and prompts that is differentiable in the frames. Here it is local
contrast, mixed with the recipe's own HPS.
"""

from torch import Tensor

import vader_ray as vr


def contrast(frames: Tensor, prompts: list[str]) -> Tensor:
    """Score each video by the mean standard deviation of its frames' pixels.

    Args:
        frames: (batch, frames, 3, height, width) in [0, 1].
        prompts: the prompt of each video; not used here.

    Returns:
        One score per video, higher is better.
    """
    return frames.flatten(2).std(2).mean(1)


def main(num_steps: int = 8) -> None:
    """Train and print what changed on test prompts."""
    changes = {"evaluation.num_videos": 8, "evaluation.num_test_videos": 8, "expected_metrics": {}}
    recipe = vr.load_recipe("shapes_hps", changes, num_steps=num_steps)
    hps = {"reward": "hps", "weights": "shapes:hps", "weight": 1.0}
    result = vr.train(recipe, rewards=[hps, {"reward": contrast, "weight": 0.5}], workers=2)
    for name, gain in result.results.gains.items():
        print(f"{name}: {gain.mean:+.4f} ± {gain.standard_error:.4f}")
    print(f"adapter: {result.adapter}")


if __name__ == "__main__":
    main()
