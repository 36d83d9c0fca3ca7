"""Thumbnails, distances, motion, and the statistics of evaluations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from vader_ray.metrics.core.statistics import (
    confidence_interval,
    crossed_interval,
    effect_size,
    fall_test,
    hacking_index,
    jackknife_values,
    prompt_means,
    standard_error,
)
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
    assert np.isnan(standard_error([3.0])), "one prompt has no standard error"


def _effects(kind: str, random: np.random.Generator, *shape: int) -> NDArray[np.float64]:
    """Draw effects with mean 0 and standard deviation 1."""
    if kind == "normal":
        return random.normal(size=shape)
    if kind == "exponential":
        return random.exponential(size=shape) - 1
    sigma = 0.75
    mean, variance = np.exp(sigma**2 / 2), np.exp(sigma**2) * (np.exp(sigma**2) - 1)
    drawn: NDArray[np.float64] = (random.lognormal(0.0, sigma, shape) - mean) / variance**0.5
    return drawn


@pytest.mark.parametrize("kind", ["normal", "exponential", "lognormal"])
@pytest.mark.parametrize("num_prompts", [8, 16, 30])
@pytest.mark.parametrize("num_noises", [1, 2, 8])
def test_the_interval_covers_the_mean_in_93_of_100_cases(
    kind: str, num_prompts: int, num_noises: int
) -> None:
    """Half of the variance of a difference is its prompt's, half its noise's, both of the same skewness."""
    random = np.random.default_rng(0)
    shared = _effects(kind, random, 40_000, num_prompts, 1)
    differences = (shared + _effects(kind, random, 40_000, num_prompts, num_noises)) / 2**0.5
    low, high = confidence_interval(differences.mean(axis=-1))
    coverage = np.mean((low <= 0) & (high >= 0))
    assert 0.93 <= coverage <= 0.96


@pytest.mark.parametrize(
    ("parts", "kind", "lowest"),
    [((0, 0, 1), "normal", 0.96), ((1, 0.3, 1), "normal", 0.93), ((0.2, 1, 0.5), "normal", 0.93),
     ((1, 1, 1), "normal", 0.93), ((1, 1, 1), "exponential", 0.88), ((0, 1, 1), "exponential", 0.92)],
)  # fmt: skip
def test_the_interval_over_seeds_and_prompts_covers_the_mean(
    parts: tuple[float, float, float], kind: str, lowest: float
) -> None:
    """Five seeds, 24 prompts; standard deviations of the effects of seeds, of prompts, and of the rest."""
    random, runs = np.random.default_rng(0), 2000
    of_seeds = parts[0] * _effects(kind, random, runs, 5, 1)
    of_prompts = parts[1] * _effects(kind, random, runs, 1, 24)
    values = of_seeds + of_prompts + parts[2] * _effects(kind, random, runs, 5, 24)
    bounds = np.array([crossed_interval(table) for table in values])
    error = 3 * (0.05 * 0.95 / runs) ** 0.5  # of the share of the simulated runs
    assert lowest - error <= np.mean((bounds[:, 0] <= 0) & (bounds[:, 1] >= 0)) <= 0.985


def test_neither_seeds_nor_prompts_alone_give_the_interval_over_both() -> None:
    random = np.random.default_rng(0)
    of_seeds, of_prompts = random.normal(size=(2000, 5, 1)), random.normal(size=(2000, 1, 12))
    low, high = confidence_interval((of_seeds + of_prompts).mean(axis=1))
    assert np.mean((low <= 0) & (high >= 0)) < 0.8, "prompts alone"
    values = of_seeds + 2 * of_prompts
    half = stats.t.ppf(0.975, 4) * values.mean(axis=2).std(axis=1, ddof=1) / 5**0.5
    assert np.mean(abs(values.mean(axis=(1, 2))) <= half) < 0.9, "seeds alone"


def test_the_interval_of_sums_of_effects_is_known_in_closed_form() -> None:
    seeds, prompts = np.array([-1.0, 0.0, 4.0]), np.array([2.0, 3.0, 7.0, 8.0])
    low, high = crossed_interval(seeds[:, None] + prompts)  # no residual: the variances of both means add
    parts = np.array([seeds.var(ddof=1) / 3, prompts.var(ddof=1) / 4])
    freedom = parts.sum() ** 2 / (parts**2 / [2, 3]).sum()
    half = stats.t.ppf(0.975, freedom) * parts.sum() ** 0.5
    assert (low, high) == pytest.approx((6 - half, 6 + half))
    same = np.stack([prompts, prompts])  # seeds without any effect: that of the prompts
    half = stats.t.ppf(0.975, 3) * prompts.std(ddof=1) / 2
    assert crossed_interval(same) == pytest.approx((5 - half, 5 + half))
    assert crossed_interval(prompts[None]) == tuple(map(float, confidence_interval(prompts)))
    assert np.isnan(crossed_interval(np.array([[1.0], [2.0]]))).all()


def test_an_effect_size_is_in_standard_deviations_of_the_base_model() -> None:
    assert effect_size(3.0, [1.0, 2.0, 3.0]) == pytest.approx(3.0)
    assert np.isnan(effect_size(3.0, [1.0, 1.0]))
    assert np.isnan(effect_size(3.0, [1.0]))


def test_the_hacking_index_is_the_mean_fall_divided_by_the_mean_gain() -> None:
    assert hacking_index([2.0], [-1.0, 3.0]) == 0.25, "the rise of 3 does not make up for the fall of 1"
    assert hacking_index([2.0, 4.0], [-3.0, -3.0]) == 1.0, "they fell as much as the trained ones rose"
    assert hacking_index([2.0], [0.5, 0.0]) == 0.0
    assert np.isnan(hacking_index([-1.0, 0.5], [-1.0])), "nothing was gained"
    assert np.isnan(hacking_index([1.0], []))


def test_videos_of_a_prompt_are_not_independent() -> None:
    """The interval over 4 × 8 videos as if independent covers in 66 % of cases."""
    random = np.random.default_rng(0)
    differences = random.normal(size=(4000, 8, 1)) + random.normal(size=(4000, 8, 8))
    low, high = confidence_interval(differences.reshape(4000, 64))
    assert np.mean((low <= 0) & (high >= 0)) < 0.75


def test_without_skewness_the_interval_is_student_s_with_one_degree_of_freedom_less() -> None:
    values = [1.0, 2.0, 4.0, 5.0]
    half = stats.t.ppf(0.975, 2) * stats.sem(values)
    low, high = confidence_interval(values)
    assert (float(low), float(high)) == pytest.approx((3 - half, 3 + half), rel=1e-5)
    skewed = [1.0, 1.1, 1.2, 1.3, 5.0]
    low, high = confidence_interval(skewed)
    assert high - np.mean(skewed) > np.mean(skewed) - low > 0
    rare = [-1.0] * 3 + [0.0] * 21
    low, high = confidence_interval(rare)
    assert np.mean(rare) - low == pytest.approx(2 * stats.t.ppf(0.975, 22) * stats.sem(rare))
    assert low < high < 0
    assert np.isnan(confidence_interval([1.0])).all()
    assert np.isnan(confidence_interval([1.0, np.nan])).all()
    assert list(map(float, confidence_interval([2.0, 2.0, 2.0]))) == [2.0, 2.0]


def test_prompts_are_averaged_before_anything_else() -> None:
    assert prompt_means([1.0, 5.0, 3.0, 7.0], ["a", "b", "a", "a"]) == pytest.approx([11 / 3, 5.0])


def test_the_jackknife_of_a_mean_is_the_values_and_of_pairs_has_the_true_spread() -> None:
    values = [3.0, 1.0, 4.0]
    prompts = ["a", "b", "c"]
    pseudo = jackknife_values(lambda rows: np.mean([values[row] for row in rows]).item(), prompts)
    assert pseudo == pytest.approx(values)

    random = np.random.default_rng(0)
    diversity, names = DiversityMetric(), [str(index) for index in range(12)]
    means, errors, naive = [], [], []
    for _ in range(200):  # grey videos of random brightness: the mean difference of two
        features = torch.from_numpy(np.repeat(random.uniform(0, 255, (12, 1)), 4, axis=1)).byte()

        def mean_of(rows: Sequence[int], features: torch.Tensor = features) -> float:
            chosen = features[list(rows)]
            return diversity.compare(chosen, [names[row] for row in rows]).mean().item()

        pseudo = jackknife_values(mean_of, names)
        means.append(np.mean(pseudo))
        errors.append(standard_error(pseudo))
        naive.append(standard_error(diversity.compare(features, names).tolist()))
    truth = np.std(means)
    # the jackknife of a statistic of pairs is too wide rather than too narrow (Efron and Stein 1981)
    assert truth * 0.95 < np.mean(errors) < truth * 1.25
    assert np.mean(naive) < truth * 0.65, "the spread of the videos' own values is too narrow"


def test_the_test_of_a_fall_is_exact_and_accounts_for_its_comparisons() -> None:
    falls = np.array([[1.0, 2.0, 3.0, 0.5], [-1.0, 0.2, 0.1, 0.3]])
    p_value, index = fall_test(falls, np.random.default_rng(0))
    assert (p_value, index) == (1 / 16, 0), "all prompts fell: one of the 16 flips"
    random = np.random.default_rng(1)
    one = random.normal(0.3, 1.0, (1, 10))
    theirs = stats.permutation_test(
        (one[0],), lambda values: np.mean(values), permutation_type="samples", alternative="greater"
    ).pvalue
    assert fall_test(one, random)[0] == pytest.approx(theirs, abs=1e-12)
    many = np.concatenate([one, random.normal(0.0, 1.0, (20, 10))])
    assert fall_test(many, random)[0] > theirs
    assert fall_test(np.zeros((2, 3)), random)[0] == 1.0


def test_gains_are_paired_and_have_no_interval_with_one_prompt() -> None:
    before = {"eval/objective": [1.0, 5.0, 9.0, 2.0], "eval/motion": [0.0, 1.0, 2.0, 3.0]}
    after = {"eval/objective": [1.5, 5.5, 9.5, 2.5], "eval/motion": [0.0, 1.0, 2.0, 7.0]}
    metrics = paired_gains(before, after)
    assert {name: value for name, value in metrics.items() if name.endswith("objective")} == {
        "eval/gain/objective": 0.5, "eval/gain_standard_error/objective": 0.0,
        "eval/gain_low/objective": 0.5, "eval/gain_high/objective": 0.5,
        "eval/effect_size/objective": pytest.approx(0.5 / np.std([1, 5, 9, 2], ddof=1)),
    }  # fmt: skip
    assert metrics["eval/gain_standard_error/metric/motion"] == pytest.approx(1.0)
    assert paired_gains({"eval/reward/hps": [1.0]}, {"eval/reward/hps": [3.0]}) == {"eval/gain/hps": 2.0}
