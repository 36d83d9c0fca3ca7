"""The running quantile against numpy's and a closed form, and its state."""

from __future__ import annotations

import math

import pytest

from vader_ray.alignment.running_quantile import RunningQuantile


def test_the_quantile_of_equally_spaced_values_is_linear() -> None:
    running = RunningQuantile(0.8, window=100)
    running.add([float(value) for value in range(11)])
    assert running.value() == pytest.approx(8.0)


def test_only_the_latest_finite_values_count() -> None:
    running = RunningQuantile(0.5, window=3)
    running.add([100.0, math.nan, 1.0, math.inf])
    running.add([2.0, 3.0])
    assert running.value() == 2.0


def test_without_values_there_is_no_limit() -> None:
    running = RunningQuantile(0.8)
    running.add([math.nan])
    assert running.value() == math.inf


def test_a_restored_quantile_continues_as_the_original() -> None:
    straight, restored = RunningQuantile(0.8, window=4), RunningQuantile(0.8, window=4)
    straight.add([5.0, 1.0, 4.0])
    restored.load_state_dict(straight.state_dict())
    for running in (straight, restored):
        running.add([2.0, 9.0])
    assert restored.value() == straight.value()
    assert restored.state_dict() == straight.state_dict() == [1.0, 4.0, 2.0, 9.0]
