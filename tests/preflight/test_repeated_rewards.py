"""Calls of a reward that are counted without being computed cost what computed ones cost."""

from __future__ import annotations

import pytest
import torch

from vader_ray import rewards
from vader_ray.alignment.reward_gradient import score_and_gradient
from vader_ray.alignment.scoring import score_only
from vader_ray.config import RewardConfig
from vader_ray.preflight import repeated_rewards
from vader_ray.preflight.meta_device import META, meta_device_mode
from vader_ray.preflight.repeated_rewards import RepeatedReward
from vader_ray.preflight.trackers import OpCounter, PeakMemoryTracker

NUM_FRAMES = 6


@pytest.mark.slow
def test_repeated_calls_cost_what_computed_ones_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peak, memory at the end, and kernel calls; of gradients and of scores alone.

    Bytes are equal but for the four of one score, which a computed call keeps a little longer.
    """
    counted, kernels = [], []
    with meta_device_mode():
        network = rewards.build(RewardConfig(reward="hps", weights="shapes:hps"), device=META)
        frames = torch.zeros(1, NUM_FRAMES, 3, 8, 8, device=META)
        score_only(network, frames[:, :1], ["a"], 1)  # fills the caches of constants
        for num_computed in (2, 1000):
            monkeypatch.setattr(repeated_rewards, "_NUM_COMPUTED", num_computed)
            reward, found = RepeatedReward(network), list[int]()
            for call in (score_and_gradient, score_only):
                with PeakMemoryTracker(META.type) as memory, OpCounter(META.type) as work:
                    result = call(reward, frames, ["a"], 1)
                    found += [memory.peak, memory.now]
                    del result
                found.append(memory.now)
                kernels.append(work.operations)
            counted.append(found)
    assert counted[0] == pytest.approx(counted[1], rel=0, abs=4)
    assert kernels[:2] == kernels[2:]
    assert kernels[0].total() > 100 * NUM_FRAMES
