"""A run that freezes motion on purpose is caught by a guard on a measure of motion.

The measure is `motion`, which needs no weights: RAFT's own cannot be downloaded here, and a RAFT with random
weights measures nothing.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.training import Keeper
from vader_ray.config import load
from vader_ray.training.loop import train


@pytest.mark.slow
def test_training_on_flicker_alone_stops_where_the_videos_stand_still(tmp_path: Path) -> None:
    config = load(
        "shapes_hps",
        [
            "rewards=[{reward: tests.helpers.still_reward.stillness}]",
            "eval_rewards=[{reward: colorfulness}]",
            "eval_metrics=[{metric: temporal_flickering}]",
            "guard={metrics: [eval/motion], action: stop, unit: relative, bound: 0.3}",
            "num_steps=8",
            "prompts.test=null",
            "optimizer.learning_rate=1e-2",
            "sampling.num_inference_steps=6",
            "sampling.truncation_depth=2",
            "evaluation={every: 4, num_videos: 8, num_shown: 1}",
            "checkpoint.every=100",
        ],
    )
    keeper = Keeper(tmp_path)
    ended = train(config, on_step=keeper)
    assert ended.step == 4
    assert ended.stopped is not None
    assert ended.stopped.startswith("guard: eval/motion fell to ")
    before, after = keeper.reports[0].metrics, keeper.reports[-1].metrics
    assert after["eval/motion"] < 0.5 * before["eval/motion"]
    # the trained reward, and VBench's flicker, praise what the guard refuses
    assert after["eval/reward/stillness"] > before["eval/reward/stillness"]
    assert after["eval/temporal_flickering"] > before["eval/temporal_flickering"]
