"""The coefficient of every denoising step's prediction in the last sample, from the scheduler alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vader_ray.errors import UserError
from vader_ray.models.core.denoiser_calls import unused_output
from vader_ray.models.core.loop_hooks import LoopHook, as_step_output, step_seed

_TOLERANCE = 1e-3
"""Largest relative deviation of the scheduler from a linear function; some compute in float32."""


class StepResponses(LoopHook):
    """Run the scheduler on predictions that are 1 in one denoising step and 0 in the others.

    The rows of a small sample begin at 0. In row k the prediction of step k is 1, so its last value is the
    coefficient of that prediction, for schedulers of one step and of several. A row without predictions has
    the scheduler's noise alone, which is subtracted. A row with the predictions of all steps at once, large
    ones, shows whether the scheduler is linear. No denoiser is called, and the pipeline's own latents do not
    change.

    Args:
        num_steps: number of denoising steps.
    """

    def __init__(self, num_steps: int) -> None:
        super().__init__([0], plan=None)
        signs = 1.0 - 2.0 * (torch.arange(num_steps) % 2)
        rows = [torch.eye(num_steps), 100 * signs[None], torch.zeros(1, num_steps)]
        self._predictions = torch.cat(rows).double()
        """Prediction of each row in each denoising step."""
        self._outputs: tuple[Tensor, ...] = ()

    def _denoise(
        self, denoiser: Any, forward: Callable[..., Any], dtype: torch.dtype, inputs: dict[str, Any]
    ) -> Any:
        return unused_output(inputs)

    def advance(self, step: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        bound = inspect.signature(step).bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        shape = (-1, *[1] * (given["sample"].ndim - 1))
        predicted = self._predictions[:, self.index].reshape(shape).to(given["sample"].device)
        changed = {"model_output": predicted, "sample": torch.zeros_like(predicted), "return_dict": False}
        if self._outputs:
            changed["sample"] = self._outputs[0]
        if given.get("old_pred_original_sample") is not None:
            changed["old_pred_original_sample"] = self._outputs[1]
        if "generator" in given:
            seed = step_seed(0, self.index)
            changed["generator"] = [torch.Generator().manual_seed(seed) for _ in predicted]
        self._outputs = step(**given | changed)
        return as_step_output((given["sample"], given["sample"]), given)

    def coefficients(self) -> tuple[float, ...]:
        """Return the coefficient of each denoising step's prediction in the last sample.

        Raises:
            UserError: the last sample is not a linear function of the predictions.
        """
        last = self._outputs[0].flatten()
        *found, together = (last[:-1] - last[-1]).tolist()
        terms = [factor * own for factor, own in zip(self._predictions[-2].tolist(), found, strict=True)]
        if not abs(together - sum(terms)) <= _TOLERANCE * sum(map(abs, terms)):
            raise UserError(
                "sampling.truncation: this choice needs a scheduler whose steps are linear in the "
                "denoiser's predictions, and this one clips samples or changes them otherwise; set its "
                "clip_sample or thresholding to false, or choose truncation=last"
            )
        return tuple(found)
