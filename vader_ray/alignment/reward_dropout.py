"""Random dropout of rewards: a step computes some rewards of a mix, with the mix's gradient on average."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from vader_ray.alignment.reward_gradient import RewardTerm


def draw_kept(dropout: Sequence[float], generator: torch.Generator) -> list[int]:
    """Return the ascending indices of the rewards that a step computes, one at least.

    Each reward is left out with its own probability, independently; a draw that leaves out all is repeated.

    Args:
        dropout: probability of leaving out each reward, below 1.
        generator: source of the draw; its device is the CPU.
    """
    probabilities = torch.tensor(dropout, dtype=torch.float64)
    while True:
        draws = torch.rand(len(dropout), generator=generator, dtype=torch.float64)
        if kept := torch.nonzero(draws >= probabilities).flatten().tolist():
            return kept


def keep_probabilities(dropout: Sequence[float]) -> list[float]:
    """Return the probability with which `draw_kept` keeps each reward: (1 − pᵢ) / (1 − ∏ⱼ pⱼ)."""
    return [(1 - each) / (1 - math.prod(dropout)) for each in dropout]


def kept_terms(
    terms: Sequence[RewardTerm], dropout: Sequence[float], kept: Sequence[int]
) -> list[RewardTerm]:
    """Return the kept terms, their weights divided by their probabilities of being kept."""
    probabilities = keep_probabilities(dropout)
    return [replace(terms[index], weight=terms[index].weight / probabilities[index]) for index in kept]
