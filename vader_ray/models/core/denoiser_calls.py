"""Inputs and outputs of a denoiser's calls: latents, predictions, and the branches of guidance in a batch.

A denoiser returns a tuple of its predictions or an object with ``sample``, as the pipeline asks by
``return_dict``. Denoisers of video and sound take the latents of both and return two predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

SOUND_LATENTS = "audio_hidden_states"
"""Argument of a denoiser of video and sound with the latents of the sound."""


def latents_of(inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Return the latents among a denoiser's inputs: the first one, and those of the sound if there is one."""
    names = [next(iter(inputs)), *(name for name in inputs if name == SOUND_LATENTS)]
    return {name: inputs[name] for name in names}


def predictions(output: Any) -> Sequence[Tensor]:
    """Return the predictions of a denoiser's output, the video's first."""
    return output if isinstance(output, tuple) else (output.sample,)


def with_predictions(output: Any, predicted: Sequence[Tensor]) -> Any:
    """Return a denoiser's output with other predictions."""
    if isinstance(output, tuple):
        return tuple(predicted)
    (output.sample,) = predicted
    return output


def as_output(predicted: Sequence[Tensor], inputs: dict[str, Any]) -> Any:
    """Return predictions as the denoiser would for these inputs."""
    return tuple(predicted) if inputs.get("return_dict") is False else SimpleNamespace(sample=predicted[0])


def unused_output(inputs: dict[str, Any]) -> Any:
    """Return an output of arbitrary values, which nothing reads, as the denoiser would for these inputs."""
    return as_output([torch.empty_like(latents) for latents in latents_of(inputs).values()], inputs)


def rows_of_branch(value: Any, num_rows: int, branch: int) -> Any:
    """Return the rows of one branch of guidance; values without rows are unchanged.

    Args:
        value: an input of a call for both branches, the unconditional one first.
        num_rows: rows of the call's latents; a tensor has one row or several for each of them.
        branch: 0 is without the prompt, 1 with it.
    """
    has_rows = isinstance(value, Tensor) and value.ndim > 0 and len(value) % num_rows == 0
    return value.chunk(2)[branch] if has_rows else value
