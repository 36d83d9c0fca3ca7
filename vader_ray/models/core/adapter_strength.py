"""Sampling with a part of the adapter's update, which may differ from denoising step to denoising step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from vader_ray.models.adapters.lora import scaled
from vader_ray.models.core.loop_hooks import LoopHook


def step_strengths(points: Sequence[tuple[float, float]], num_steps: int) -> list[float] | None:
    """Return the factor of each denoising step; None if it is 1 in all of them.

    Args:
        points: part of the sampling, ascending, and factor; see `vader_ray.config.GenerationConfig`.
        num_steps: number of denoising steps.
    """
    positions, factors = zip(*points, strict=True)
    strengths: list[float] = np.interp(np.arange(num_steps) / num_steps, positions, factors).tolist()
    return None if set(strengths) == {1.0} else strengths


class AdapterStrengthHook(LoopHook):
    """A pass without gradient in which the adapter's update is multiplied by a factor.

    Args:
        seeds: one per video.
        strengths: factor of each denoising step, the noisiest first; 0 is the pretrained model, 1 the adapter
            as it was trained.
    """

    def __init__(self, seeds: Sequence[int], strengths: Sequence[float]) -> None:
        super().__init__(seeds, plan=None)
        self._strengths = strengths

    def _denoise(
        self, denoiser: nn.Module, forward: Callable[..., Any], dtype: torch.dtype, inputs: dict[str, Any]
    ) -> Any:
        step = min(self.index, len(self._strengths) - 1)  # a scheduler with more steps is refused at the end
        with scaled(denoiser, self._strengths[step]):
            return super()._denoise(denoiser, forward, dtype, inputs)
