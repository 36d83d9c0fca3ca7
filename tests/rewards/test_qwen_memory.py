"""Counted memory of rewards: HPSv3 and VideoReward at their published sizes, on the meta device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.published_rewards import CHUNK_SIZE, count_memory, reward_of
from vader_ray import rewards
from vader_ray.alignment.reward_gradient import score_and_gradient
from vader_ray.config import RewardConfig
from vader_ray.preflight.estimate import num_bytes, without_garbage_collection
from vader_ray.preflight.meta_device import META, meta_device_mode
from vader_ray.preflight.trackers import PeakMemoryTracker

GIB = 2.0**30


@pytest.mark.parametrize("num_frames", [2, 3 * CHUNK_SIZE])
def test_the_last_chunk_takes_as_much_memory_as_all(num_frames: int) -> None:
    spec = RewardConfig(reward="hps", weights="shapes:hps")
    counted = count_memory(spec, num_frames, 32, 48)
    with without_garbage_collection(), meta_device_mode():
        reward = rewards.build(spec, device=META)
        with PeakMemoryTracker("meta") as tracker:
            frames = torch.zeros(1, num_frames, 3, 32, 48, device=META)
            score_and_gradient(reward, frames, ["a"], CHUNK_SIZE)
    assert isinstance(reward, torch.nn.Module)
    assert counted.weights == num_bytes([reward])
    frame = 3 * 32 * 48 * 4
    assert counted.peak - counted.weights == pytest.approx(tracker.peak, abs=frame)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_frames", "weights", "peak", "peak_without"),
    [("hpsv3", 81, 14.4, 16.4, 42.3), ("video_reward", 81, 4.1, 6.1, 21.6)],
)
def test_counted_memory_is_what_the_documentation_states(
    name: str, num_frames: int, weights: float, peak: float, peak_without: float, tmp_path: Path
) -> None:
    for checkpointing, expected in ((True, peak), (False, peak_without)):
        reward = reward_of(name, tmp_path / str(checkpointing), checkpointing=checkpointing)
        counted = count_memory(reward, num_frames, 480, 832)
        assert counted.weights / GIB == pytest.approx(weights, abs=0.1)
        assert counted.peak / GIB == pytest.approx(expected, abs=0.1)
