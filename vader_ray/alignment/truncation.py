"""Choice of the gradient steps: truncated backpropagation through sampling (arXiv 2407.08737)."""

from __future__ import annotations

import torch

from vader_ray.config import SamplingConfig
from vader_ray.types import TruncationPlan


def draw_plan(sampling: SamplingConfig, generator: torch.Generator) -> TruncationPlan:
    """Choose the gradient steps of one training step.

    Args:
        sampling: the recipe's settings.
        generator: source of ``truncation="random"``; the other choices draw nothing.
    """
    assert sampling.recompute != "auto", "chosen before a run"
    return TruncationPlan(
        num_inference_steps=sampling.num_inference_steps,
        grad_steps=grad_steps(sampling, generator),
        backprop_through_input=sampling.backprop_through_input,
        recompute=sampling.recompute,
        num_endings=sampling.num_endings,
    )


def grad_steps(sampling: SamplingConfig, generator: torch.Generator) -> tuple[int, ...]:
    """Return the ascending indices of the gradient steps; the noisiest denoising step is 0.

    ``last`` is the choice of VADER and DRaFT-K (arXiv 2309.17400). With ``random``, AlignProp (arXiv
    2310.03739) draws the depth uniformly. ``uniform`` spaces the gradient steps evenly and ends with the last
    denoising step, so that the gradient reaches early steps, which decide the motion, at the cost of few.
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
