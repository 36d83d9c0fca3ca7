"""Curves of training steps: means over seeds, smoothing that keeps a straight line, and long runs."""

from __future__ import annotations

import pytest
from mlflow import MlflowClient

from vader_ray.orchestration.reporting.past_runs import PastRun
from vader_ray.orchestration.reporting.report_figures import RunGroup
from vader_ray.orchestration.reporting.training_curves import MAX_POINTS, step_series

METRIC = "train/reward_mean"


def _group(*values: list[float]) -> RunGroup:
    """Runs of these values at the steps 1, 2, 3 …; step 0 is an evaluation before training."""
    histories = [dict(enumerate([-9.0, *run])) for run in values]
    client = MlflowClient("http://127.0.0.1:1")
    return RunGroup(
        "runs",
        [
            PastRun(client, "id", "0", "run", "completed", 0, {}, {}, {METRIC: history}, {})
            for history in histories
        ],
    )


def test_a_point_is_the_mean_of_the_seeds_that_have_the_step() -> None:
    line = step_series(_group([1, 2, 3], [3, 4]), METRIC)
    assert (line.x, line.y) == ([1, 2, 3], [2, 3, 3])
    assert step_series(_group([1]), "time/step_seconds").x == []


def test_smoothing_keeps_a_straight_line_and_halves_a_zigzag() -> None:
    straight = step_series(_group([float(step) for step in range(100)]), METRIC, is_smooth=True)
    assert straight.y == pytest.approx(straight.raw)
    zigzag = step_series(_group([(-1.0) ** step for step in range(100)]), METRIC, is_smooth=True)
    # a window of seven: four of one sign and three of the other
    assert [abs(value) for value in zigzag.y[3:-3]] == pytest.approx([1 / 7] * 94)
    assert not step_series(_group([1, 2, 3]), METRIC, is_smooth=True).raw, "too short to be smoothed"


def test_of_a_long_run_neighbouring_steps_are_averaged() -> None:
    line = step_series(_group([float(step) for step in range(1, 5 * MAX_POINTS + 1)]), METRIC)
    assert len(line.x) == MAX_POINTS
    assert line.x == line.y
    assert line.x[:2] == [3, 8]
