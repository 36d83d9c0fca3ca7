"""Statistics over held-out videos: standard errors, bootstrap intervals, mean distances within a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, nan
from statistics import stdev

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vader_ray.types import Scores

NUM_RESAMPLES, CONFIDENCE = 2000, 0.95
"""Resamples of a bootstrap, and the probability that its interval covers."""


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean; 0 for a single value, NaN if any value is not finite."""
    if not all(map(isfinite, values)):
        return nan
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def bootstrap_interval(
    values: Sequence[float], resamples: Int[Tensor, "resamples values"]
) -> tuple[float, float]:
    """Return the 95 % confidence interval of the mean, by the percentile bootstrap (Efron 1979).

    Args:
        resamples: of `draw_resamples`; the same for all intervals that are to be compared.
    """
    means = torch.tensor(values, dtype=torch.float64)[resamples].mean(dim=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def draw_resamples(num_values: int, generator: torch.Generator) -> Int[Tensor, "resamples values"]:
    """Draw `NUM_RESAMPLES` rows of ``num_values`` indices with replacement."""
    return torch.randint(num_values, (NUM_RESAMPLES, num_values), generator=generator)


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
