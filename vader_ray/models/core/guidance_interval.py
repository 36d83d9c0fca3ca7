"""Classifier-free guidance in a part of the denoising steps only (arXiv 2404.07724)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import nn

from vader_ray.config import WHOLE_SAMPLING
from vader_ray.errors import UserError
from vader_ray.models.core.denoiser_calls import as_output, predictions, rows_of_branch
from vader_ray.models.core.loop_hooks import LoopHook


def check_interval(interval: tuple[float, float], denoiser: nn.Module, *, has_branches: bool) -> None:
    """Check that guidance can be left out in denoising steps.

    Args:
        interval: ``sampling.guidance_interval``.
        denoiser: of the pipeline, for the message.
        has_branches: whether the pipeline calls it with and without the prompt.

    Raises:
        UserError: the denoiser takes guidance as an input.
    """
    if interval != WHOLE_SAMPLING and not has_branches:
        raise UserError(
            f"sampling.guidance_interval={list(interval)}: {type(denoiser).__name__} takes guidance as an "
            "input and is called once in each step; leave the setting out"
        )


class GuidanceIntervalHook(LoopHook):
    """A pass without gradient that leaves out the unconditional branch of some denoising steps.

    The pipeline gets the conditional prediction for both branches; their difference is zero, and so is what
    guidance of any scale adds.

    Args:
        seeds: one per video.
        stop_before: raise `PrefixDone` before this denoising step.
        guided_steps: denoising steps with both branches.
    """

    def __init__(self, seeds: Sequence[int], *, stop_before: int, guided_steps: Collection[int]) -> None:
        super().__init__(seeds, plan=None, stop_before=stop_before)
        self._guided_steps = guided_steps
        self._conditional: tuple[int, Any] = (-1, None)
        """Denoising step and output of the last call without guidance. Further calls of the same step get it,
        too: those for another branch, and those of further kinds of guidance."""

    def _denoise(
        self, denoiser: nn.Module, forward: Callable[..., Any], dtype: torch.dtype, inputs: dict[str, Any]
    ) -> Any:
        if self.index in self._guided_steps:
            return super()._denoise(denoiser, forward, dtype, inputs)
        rows = len(next(iter(inputs.values())))
        if rows == 2 * len(self._seeds):  # both branches in one call, the unconditional one first
            halves = {name: rows_of_branch(value, rows, 1) for name, value in inputs.items()}
            output = super()._denoise(denoiser, forward, dtype, halves)
            self._conditional = self.index, output
            return as_output([torch.cat([each] * 2) for each in predictions(output)], inputs)
        if self._conditional[0] != self.index:  # one call for each branch, the conditional one first
            self._conditional = self.index, super()._denoise(denoiser, forward, dtype, inputs)
        return self._conditional[1]
