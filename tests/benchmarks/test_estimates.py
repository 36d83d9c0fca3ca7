"""Estimates over seeds and prompts, and costs that are known by bounds."""

from __future__ import annotations

from math import inf, isnan
from typing import Any

import numpy as np
import pytest

from benchmarks.data_efficiency import chosen_rates, factor_table
from benchmarks.estimates import Bounds, Estimate, effect_sizes, first_reached, median_interval, prompt_gains
from benchmarks.resolution import gap


def known(*values: float) -> list[Bounds]:
    return [Bounds(value, value) for value in values]


def test_the_interval_of_a_median_is_that_of_order_statistics() -> None:
    found = median_interval(known(5, 1, 4, 2, 3))
    assert (found.median, found.low, found.high) == (Bounds(3, 3), 1, 5)
    assert found.coverage == pytest.approx(15 / 16)  # unless all five are on one side
    assert found.text() == "3 (interval 1 to 5)"
    wide = median_interval(known(*range(1, 11)))
    assert (wide.low, wide.high) == (2, 9)
    assert wide.coverage == pytest.approx(1 - 22 / 1024)  # none or one of ten below


def test_what_was_not_reached_has_no_upper_bound() -> None:
    some = median_interval([*known(2, 3, 4), Bounds(10, inf), Bounds(10, inf)])
    assert some.text() == "4 (interval 2 to ∞)"
    most = median_interval([*known(2, 3), *[Bounds(10, inf)] * 3])
    assert most.text() == "> 10 (interval 2 to ∞)"
    lower = median_interval([Bounds(10, inf)] * 5)
    assert (lower.low, lower.high) == (10, inf)


def test_the_interval_of_a_median_covers_censored_ratios() -> None:
    """Costs are known between two evaluations and up to the end of a run, and the interval still covers."""
    random, runs = np.random.default_rng(0), 1000
    covered = 0
    for values in random.lognormal(1.0, 1.0, (runs, 5)):
        bounds = [
            Bounds(np.floor(value), np.ceil(value)) if value < 4 else Bounds(4, inf) for value in values
        ]
        found = median_interval(bounds)
        covered += found.low <= np.e <= found.high
    assert covered / runs >= 15 / 16 - 3 * (15 / 256 / runs) ** 0.5


def test_a_gain_is_reached_between_two_evaluations() -> None:
    curve = [(0.0, 0.0), (8.0, 0.1), (16.0, 0.5), (24.0, 0.2)]
    assert first_reached(curve, 0.1, smallest=4) == Bounds(4, 8)
    assert first_reached(curve, 0.3, smallest=4) == Bounds(8, 16)
    assert first_reached(curve, 0.6, smallest=4) == Bounds(24, inf)
    assert Bounds.ratio(Bounds(80, 160), Bounds(8, 16)) == Bounds(5, 20)
    assert Bounds.ratio(Bounds(80, inf), Bounds(4, 8)) == Bounds(10, inf)


def row(
    method: str, seed: int, gains: list[float], *, per_point: float, rate: str = "0.001"
) -> dict[str, Any]:
    """Return a run whose two prompts begin at 0 and 2 and gain as much as each other."""
    evaluations = [
        {
            "step": index,
            "reward_queries": per_point * index,
            "denoiser_calls": 2 * per_point * index,
            "train_cpu_seconds": float(index),
            "eval/reward/hps": 1.0 + gain,
            "prompts": {"eval/reward/hps": [gain, 2.0 + gain]},
        }
        for index, gain in enumerate([0.0, *gains])
    ]
    job = {"label": method, "reward": "hps", "seed": seed, "tags": {"learning rate": rate, "size": ""}}
    return {"job": job, "evaluations": evaluations}


def test_gains_are_paired_by_prompt_and_in_units_of_the_base_model() -> None:
    runs = [row("VADER", 1, [0.5, 1.0], per_point=4), row("VADER", 0, [0.0, 3.0], per_point=4)]
    assert prompt_gains(runs, "eval/reward/hps") == [[3.0, 3.0], [1.0, 1.0]], "in the order of the seeds"
    assert prompt_gains(runs, "eval/reward/hps", 1) == [[0.0, 0.0], [0.5, 0.5]]
    assert effect_sizes(runs, "eval/reward/hps")[0] == pytest.approx([3.0 / 2**0.5] * 2)
    assert Estimate.over_seeds_and_prompts([[3.0, 3.0], [1.0, 1.0]]).mean == 2.0


def test_a_gain_over_equal_values_of_the_base_model_has_no_size() -> None:
    run = {
        "job": {"seed": 0},
        "evaluations": [{"prompts": {"m": [1.0, 1.0]}}, {"prompts": {"m": [1.0, 2.0]}}],
    }
    assert all(isnan(size) for size in effect_sizes([run], "m")[0])


def test_the_factor_of_queries_is_that_at_an_equal_gain_and_says_what_was_not_reached() -> None:
    vader = [row("VADER", seed, [0.2, 1.0], per_point=4) for seed in range(5)]
    ddpo = [row("DDPO", seed, [0.1, 0.5, 0.6], per_point=40) for seed in range(5)]
    _, half, whole = factor_table([*vader, *ddpo, row("DDPO", 5, [9.0], per_point=1)])
    assert half[:5] == ["hps", "DDPO", "+0.500 (50 % of VADER's)", "5 of 5 seeds", "5 of 5 seeds"]
    # between 40 and 80 queries against 4 to 8: the factor is between 5 and 20
    assert half[5] == "5 to 20 (interval 5 to 20)"
    assert half[7] == "0.5 to 2 (interval 0.5 to 2)"
    assert whole[4] == "0 of 5 seeds"
    assert whole[5] == "> 15 (interval 15 to ∞)"  # more than 120 against 8 at most


def test_the_learning_rate_with_the_highest_gain_is_chosen() -> None:
    rows = [
        row("DDPO", 7, [gain], per_point=4, rate=rate)
        for rate, gain in {"0.001": 0.1, "0.01": -1.0, "0.003": 0.4}.items()
    ]
    assert chosen_rates(rows) == {("DDPO", "hps", ""): 0.003}


def test_the_gap_is_paired() -> None:
    found = gap({"VADER": (64, [[1.0, 2.0], [3.0, 4.0]]), "DDPO": (64, [[0.0, 1.0], [2.0, 3.0]])})
    assert (found.mean, found.low, found.high) == (1.0, 1.0, 1.0)
