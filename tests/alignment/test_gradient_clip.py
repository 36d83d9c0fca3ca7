"""The limit of a video's gradient: a quantile of the latest norms, which are the state of the algorithm."""

from __future__ import annotations

import math

import pytest

from vader_ray.alignment.gradient_clip import NUM_NORMS, STATE, add_norms, norm_limit


def test_the_quantile_of_equally_spaced_norms_is_linear() -> None:
    state = dict[str, list[float]]()
    add_norms([float(value) for value in range(1, 12)], state)
    assert norm_limit(0.8, state) == pytest.approx(9.0)


def test_only_the_latest_norms_of_a_gradient_count() -> None:
    state = dict[str, list[float]]()
    add_norms([100.0, math.nan, 0.0, math.inf], state)
    add_norms([float(value) for value in range(1, NUM_NORMS + 1)], state)
    assert state[STATE] == [float(value) for value in range(1, NUM_NORMS + 1)]


def test_without_norms_there_is_no_limit() -> None:
    state = dict[str, list[float]]()
    assert norm_limit(0.8, state) == math.inf
    add_norms([math.nan, 0.0], state)
    assert norm_limit(0.8, state) == math.inf
