"""Statistics over prompts and seeds: values per prompt, intervals, effect sizes, the test of a fall.

The videos of one prompt are alike, so prompts are the independent units: every standard error, interval and
test is computed from one value per prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import nan
from statistics import fmean

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from vader_ray.types import Scores

CONFIDENCE = 0.95
"""Probability that an interval covers."""
MAX_SIGN_FLIPS = 2**14
"""Sign flips of a test; up to 14 prompts these are all."""


def prompt_means(values: Sequence[float], prompts: Sequence[str]) -> list[float]:
    """Average the values of each prompt's videos; prompts in the order of their first video."""
    of_prompt: dict[str, list[float]] = {}
    for prompt, value in zip(prompts, values, strict=True):
        of_prompt.setdefault(prompt, []).append(value)
    return [fmean(each) for each in of_prompt.values()]


def jackknife_values(statistic: Callable[[Sequence[int]], float], prompts: Sequence[str]) -> list[float]:
    """Return the jackknife's pseudo-value of each prompt, for a statistic of a set of videos (Tukey 1958).

    That of prompt i is n · statistic(all) − (n − 1) · statistic(all without prompt i). A mean's pseudo-values
    are the values themselves; those of a mean over pairs of videos count each pair for both prompts, so
    intervals and tests over them are as wide as they should be.

    Args:
        statistic: value of the videos with these indices.
    """
    different = list(dict.fromkeys(prompts))
    whole, n = statistic(range(len(prompts))), len(different)
    if n < 2:
        return [whole] * n
    without = [
        statistic([index for index, prompt in enumerate(prompts) if prompt != left_out])
        for left_out in different
    ]
    return [n * whole - (n - 1) * rest for rest in without]


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean of one value per prompt; NaN for fewer than two, or if one is not
    finite."""
    if len(values) < 2 or not np.isfinite(values).all():
        return nan
    return float(np.std(values, ddof=1) / len(values) ** 0.5)


def confidence_interval(
    values: Sequence[float] | NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the 95 % confidence interval of the mean of one value per prompt, corrected for skewness.

    Student's t after Hall's monotone transformation (Hall 1992, "On the removal of skewness by
    transformation", J. R. Statist. Soc. B 54), with the unbiased skewness G1 and, as it is estimated too, one
    degree of freedom less; neither side becomes longer than twice Student's. In simulations
    (`tests/metrics/test_statistics.py`) it covers in 93 to 96 % of cases from 8 prompts on, where Student's t
    covers in 90 % if differences are lognormal.

    Args:
        values: shape ``(..., prompts)``.

    Returns:
        Lower and upper bound, shape ``(...)``; NaN with fewer than two prompts or values that are not finite.
    """
    given = np.asarray(values, dtype=np.float64)
    n = given.shape[-1]
    if n < 2 or not np.isfinite(given).all():
        return np.full(given.shape[:-1], nan), np.full(given.shape[:-1], nan)
    mean, deviation = given.mean(axis=-1), given.std(axis=-1, ddof=1)
    skewness = np.zeros_like(mean)
    if n > 2:
        scale = np.where(deviation > 0, given.std(axis=-1), 1.0)
        standardized = (given - mean[..., None]) / scale[..., None]
        skewness = (standardized**3).mean(axis=-1) * (n * (n - 1)) ** 0.5 / (n - 2)
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, max(n - 2, 1)) / n**0.5

    def inverse(transformed: np.float64) -> NDArray[np.float64]:
        """Invert T = S + a S² + a² S³ / 3 + a / 2n with a = skewness / 3."""
        a = np.where(abs(skewness) < 1e-6, 1e-6, skewness) / 3
        shifted = transformed - a / (2 * n)
        solution = (np.cbrt(1 + 3 * a * shifted) - 1) / a
        return np.asarray(np.clip(solution, -2 * quantile, 2 * quantile))

    low, high = (mean - deviation * inverse(tail) for tail in (quantile, -quantile))
    return np.asarray(low), np.asarray(high)


def crossed_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % confidence interval of a mean over seeds and prompts that are both samples of many.

    All seeds share the prompts, so neither the seeds' means nor the prompts' means alone have its spread. The
    variance of the mean is that of the crossed random-effects model without replication, (MS_seeds +
    MS_prompts - MS_residual) / n, and Student's degrees of freedom are Satterthwaite's (Searle, Casella and
    McCulloch 1992, "Variance Components"; the quasi-F of Clark 1973, "The language-as-fixed-effect fallacy").
    A side whose mean square does not exceed the residual's is left out, and the other one's is taken. In
    simulations with five seeds (`tests/metrics/test_statistics.py`) it covers in 93 to 98 % of cases with
    normal effects and in 88 to 98 % with exponential ones; with two seeds in as few as 83 %.

    Args:
        values: shape ``(seeds, prompts)``: one value, such as a paired gain, of each prompt in each seed.

    Returns:
        Lower and upper bound. With one seed that of `confidence_interval`; NaN with fewer than two prompts.
    """
    num_seeds, num_prompts = values.shape
    if num_seeds < 2 or num_prompts < 2:
        low, high = confidence_interval(values.mean(axis=0))
        return float(low), float(high)
    mean, of_seeds, of_prompts = values.mean(), values.mean(axis=1), values.mean(axis=0)
    residuals = values - of_seeds[:, None] - of_prompts + mean
    freedoms = np.array([num_seeds - 1, num_prompts - 1, (num_seeds - 1) * (num_prompts - 1)])
    squares = np.array([num_prompts * of_seeds.var(ddof=1), num_seeds * of_prompts.var(ddof=1),
                        (residuals**2).sum() / freedoms[2]])  # fmt: skip
    if min(squares[:2]) > squares[2]:
        variance = squares[0] + squares[1] - squares[2]
        freedom = variance**2 / (squares**2 / freedoms).sum()
    else:
        larger = int(squares[1] > squares[0])
        variance, freedom = squares[larger], freedoms[larger]
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * (variance / values.size) ** 0.5)
    return float(mean) - half, float(mean) + half


def effect_size(gain: float, base: Sequence[float]) -> float:
    """Return a gain in standard deviations of the base model's values over prompts (Glass 1976, "Primary,
    secondary, and meta-analysis of research", Educational Researcher 5).

    Args:
        base: value of every prompt with the base model; NaN if there are fewer than two or all are equal.
    """
    deviation = float(np.std(base, ddof=1)) if len(base) > 1 else 0.0
    return gain / deviation if deviation > 0 else nan


def hacking_index(trained: Sequence[float], heldout: Sequence[float]) -> float:
    """Return the mean fall of the held-out rewards divided by the mean gain of the trained rewards.

    With gains d in standard deviations of the base model's scores (`effect_size`) it is
    mean_j max(0, -d_j) / mean_i d_i, over held-out rewards j and trained rewards i: 0 if no held-out reward
    fell, 1 if they fell as much as the trained ones rose. A rise counts as 0, so it does not make up for the
    fall of another reward; for the same reason noise alone gives more than 0.

    Args:
        trained: gain of every trained reward, of one run or several.
        heldout: gain of every held-out reward.

    Returns:
        NaN if the trained rewards gained nothing, or there are no held-out ones.
    """
    if not trained or not heldout or fmean(trained) <= 0:
        return nan
    return fmean(max(0.0, -gain) for gain in heldout) / fmean(trained)


def fall_test(falls: NDArray[np.float64], generator: np.random.Generator) -> tuple[float, int]:
    """Test whether any of several measurements of the same prompts is higher than the last one.

    A one-sided paired test of all comparisons together: the largest Student's t is compared with that under
    flips of the signs of whole prompts, so a comparison with the best of many earlier measurements is
    accounted for, and so is their correlation (Westfall and Young 1993, "Resampling-based multiple testing",
    single-step max-T). Exact if no change makes a prompt's differences symmetric about 0.

    Args:
        falls: earlier minus last measurement, shape ``(comparisons, prompts)``.
        generator: source of the flips if there are more than `MAX_SIGN_FLIPS`.

    Returns:
        p-value, at least 1 / 2^prompts, and the index of the comparison with the largest t.
    """
    num_prompts = falls.shape[1]
    if 2**num_prompts <= MAX_SIGN_FLIPS:
        bits = np.arange(2**num_prompts)[:, None] >> np.arange(num_prompts) & 1
    else:
        bits = generator.integers(2, size=(MAX_SIGN_FLIPS, num_prompts))
        bits[0] = 0  # the measured signs
    norms = np.linalg.norm(falls, axis=1, keepdims=True)
    # mean / root mean square: a monotone function of Student's t, and the same one for every comparison
    directions = falls / np.where(norms > 0, norms, 1.0)
    largest = ((1.0 - 2.0 * bits) @ directions.T).max(axis=1)
    measured = directions.sum(axis=1)
    rounding = 1e-9
    return float(np.mean(largest >= measured.max() - rounding)), int(measured.argmax())


def mean_to_others(distances: Float[Tensor, "batch batch"], prompts: Sequence[str]) -> Scores:
    """Average each video's distances to the others of its prompt, or to all others if its prompt has none.

    A single video differs from nothing: 0.
    """
    if len(prompts) < 2:
        return distances.new_zeros(len(prompts))
    others = ~torch.eye(len(prompts), dtype=torch.bool, device=distances.device)
    same_prompt = torch.tensor(
        [[one == other for other in prompts] for one in prompts], device=distances.device
    )
    alike = same_prompt & others
    chosen = torch.where(alike.any(dim=1, keepdim=True), alike, others)
    return (distances * chosen).sum(dim=1) / chosen.sum(dim=1)
