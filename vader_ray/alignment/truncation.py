"""Which denoising steps carry gradient: truncated backpropagation through sampling (VADER, arXiv 2407.08737, Alg. 1)."""

from __future__ import annotations

import torch

from vader_ray.config import SamplingConfig
from vader_ray.types import TruncationPlan


def draw_plan(sampling: SamplingConfig, generator: torch.Generator) -> TruncationPlan:
    """The graded denoising steps of one step of training; only ``truncation="random"`` draws from the generator."""
    assert sampling.recompute != "auto", "chosen before a run"
    return TruncationPlan(
        num_inference_steps=sampling.num_inference_steps,
        grad_steps=grad_steps(sampling, generator),
        backprop_through_input=sampling.backprop_through_input,
        recompute=sampling.recompute,
    )


def grad_steps(sampling: SamplingConfig, generator: torch.Generator) -> tuple[int, ...]:
    """Ascending indices of the graded denoising steps.

    ``last``: VADER and DRaFT-K (arXiv 2309.17400). ``random``: AlignProp (arXiv 2310.03739) draws the depth uniformly.
    ``uniform``: evenly spaced and ending with the last, so that early steps, which lay out the motion, are reached at
    the cost of few.
    """
    num_steps, depth = sampling.num_inference_steps, sampling.truncation_depth
    if sampling.truncation == "last":
        return tuple(range(num_steps - depth, num_steps))
    if sampling.truncation == "random":
        drawn = int(torch.randint(1, depth + 1, (), generator=generator))
        return tuple(range(num_steps - drawn, num_steps))
    if sampling.truncation == "uniform":
        return tuple((segment + 1) * num_steps // depth - 1 for segment in range(depth))
    return tuple(range(sampling.window_start, sampling.window_start + depth))
