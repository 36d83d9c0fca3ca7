"""Thumbnails, distances, motion, and the statistics of evaluations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from vader_ray.metrics.core.statistics import bootstrap_interval, draw_resamples, standard_error
from vader_ray.metrics.core.thumbnails import thumbnails
from vader_ray.metrics.distance_to_base import DistanceToBaseMetric
from vader_ray.metrics.diversity import DiversityMetric
from vader_ray.metrics.motion import MotionMetric
from vader_ray.rewards.motion import MotionReward
from vader_ray.training.evaluation import paired_gains


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def test_thumbnails_are_area_means_of_evenly_spaced_frames() -> None:
    flat = thumbnails(noise(2, 33, 3, 64, 96))
    assert (flat.shape, flat.dtype) == ((2, 16 * 3 * 32 * 48), torch.uint8)
    small = flat.view(2, 16, 3, 32, 48)
    expected = noise(2, 33, 3, 64, 96)[:, -1].unflatten(3, (48, 2)).unflatten(2, (32, 2)).mean(dim=(3, 5))
    torch.testing.assert_close(
        small[:, -1].float() / 255, expected, atol=0.51 / 255, rtol=0
    )  # half a step of 8 bits
    assert thumbnails(noise(1, 3, 3, 8, 8)).shape == (1, 3 * 3 * 8 * 8)


def test_distance_and_diversity_of_flat_videos_are_the_difference_of_their_greys() -> None:
    grey = torch.tensor([0.0, 0.2, 0.6])[:, None, None, None, None].expand(3, 4, 3, 8, 8)
    distance, diversity = DistanceToBaseMetric(), DiversityMetric()
    seen = distance.features(grey)  # float32 sums of 768 squares: 1e-5
    assert distance.compare_with_base(seen, seen).tolist() == [0.0] * 3
    assert distance.compare_with_base(seen, seen.flip(0)).tolist() == pytest.approx([0.6, 0.0, 0.6], abs=1e-5)
    # no prompt has another video: all others
    assert diversity.compare(seen, ["a", "b", "c"]).tolist() == pytest.approx([0.4, 0.3, 0.5], abs=1e-5)
    assert diversity.compare(seen, ["a", "a", "b"]).tolist() == pytest.approx([0.2, 0.2, 0.5], abs=1e-5)
    assert diversity.compare(seen[:1], ["a"]).tolist() == [0.0]


def test_motion_is_that_of_the_whole_clip_and_nothing_in_one_frame() -> None:
    frames, motion = noise(2, 5, 3, 16, 16), MotionMetric()
    assert motion(frames, ["", ""]).tolist() == pytest.approx(
        MotionReward()(frames, ["", ""]).tolist(), rel=1e-5
    )
    assert motion(frames[:, :1], ["", ""]).tolist() == [0.0, 0.0]


def test_the_standard_error_is_that_of_scipy() -> None:
    assert standard_error([3.0, 1.0, 4.0, 1.5]) == pytest.approx(stats.sem([3.0, 1.0, 4.0, 1.5]), rel=1e-12)
    assert standard_error([3.0]) == 0.0


def test_the_bootstrap_interval_is_that_of_scipy_and_the_same_each_time() -> None:
    values = np.random.default_rng(0).normal(1.0, 2.0, 40)
    low, high = bootstrap_interval(values.tolist(), draw_resamples(40, torch.Generator().manual_seed(3)))
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=0
    ).confidence_interval
    spread_of_a_bound = 0.05 * (theirs.high - theirs.low)  # of 2000 resamples, measured over seeds: below 3 %
    assert (low, high) == pytest.approx(tuple(theirs), abs=spread_of_a_bound)
    assert (low, high) == bootstrap_interval(
        values.tolist(), draw_resamples(40, torch.Generator().manual_seed(3))
    )


def test_gains_are_inside_their_interval_which_is_paired() -> None:
    before = {"objective": [1.0, 5.0, 9.0, 2.0]}
    metrics = paired_gains(
        before,
        {"objective": [value + 0.5 for value in before["objective"]]},
        torch.Generator().manual_seed(0),
    )
    assert metrics == {
        "eval/gain/objective": 0.5, "eval/gain_standard_error/objective": 0.0,
        "eval/gain_low/objective": 0.5, "eval/gain_high/objective": 0.5,
    }  # fmt: skip
