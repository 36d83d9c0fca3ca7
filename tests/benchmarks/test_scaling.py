"""The scaling benchmark: its formulas against cases that can be counted by hand, and against chance."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.scaling import Network, Parts, predict, slowest_of

PARTS = Parts(prefix=4.0, grad_steps=2.0, reward=1.0, fixed=0.5, spread=0.0, adapter_bytes=4_000_000)


@pytest.mark.parametrize("num_workers", [1, 2, 16, 128])
def test_the_slowest_worker_is_as_late_as_chance_makes_it(num_workers: int) -> None:
    drawn = np.random.default_rng(0).standard_normal((20_000, num_workers)).max(axis=1).mean()
    assert slowest_of(num_workers) == pytest.approx(
        drawn, rel=0.06, abs=0.02
    )  # Blom's formula is within 5 % for two


def test_workers_share_the_videos_of_a_step() -> None:
    assert predict(PARTS, 1, 8, 0.0) == 8 * 7 + 0.5
    assert predict(PARTS, 4, 8, 0.25) == 2 * 7 + 0.5 + 0.25
    assert predict(PARTS, 3, 8, 0.0) == 3 * 7 + 0.5  # the last one has two, the others three
    assert predict(PARTS, 64, 8, 0.0) == 7 + 0.5


def test_replicas_of_the_rewards_bound_the_step_when_there_are_few() -> None:
    assert predict(PARTS, 8, 8, 0.0, num_replicas=1) == 8 * 1 + 1 + 0.5
    assert predict(PARTS, 8, 8, 0.0, num_replicas=8) == 6 + 1 + 0.5


def test_an_all_reduce_moves_twice_the_bytes_at_most() -> None:
    network = Network(bytes_per_second=1e9, latency_seconds=1e-3)
    assert network.all_reduce(1_000_000_000, 1) == 0
    assert network.all_reduce(1_000_000_000, 2) == pytest.approx(2e-3 + 1)
    assert network.all_reduce(1_000_000_000, 1024) == pytest.approx(20e-3 + 2, rel=1e-3)
