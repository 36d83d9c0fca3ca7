"""Inputs and outputs of a denoiser's calls: predictions, and the branches of guidance in a batch.

A denoiser returns a tuple or an object with ``sample``, as the pipeline asks by ``return_dict``.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import Tensor


def prediction(output: Any) -> Tensor:
    """Return the prediction of a denoiser's output, its first tensor."""
    found: Tensor = output[0] if isinstance(output, tuple) else output.sample
    return found


def with_prediction(output: Any, predicted: Tensor) -> Any:
    """Return a denoiser's output with another prediction."""
    if isinstance(output, tuple):
        return (predicted, *output[1:])
    output.sample = predicted
    return output


def as_output(predicted: Tensor, inputs: dict[str, Any]) -> Any:
    """Return a prediction as the denoiser would for these inputs."""
    return (predicted,) if inputs.get("return_dict") is False else SimpleNamespace(sample=predicted)


def rows_of_branch(value: Any, num_rows: int, branch: int) -> Any:
    """Return the rows of one branch of guidance; values without rows are unchanged.

    Args:
        value: an input of a call for both branches, the unconditional one first.
        num_rows: rows of the call's latents; a tensor has one row or several for each of them.
        branch: 0 is without the prompt, 1 with it.
    """
    has_rows = isinstance(value, Tensor) and value.ndim > 0 and len(value) % num_rows == 0
    return value.chunk(2)[branch] if has_rows else value
