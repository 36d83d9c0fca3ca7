"""What a pipeline's loop is told about each video: embedded prompts and first images."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vader_ray.config import SamplingConfig

_ENCODED_AT_ONCE = 8
"""Prompts that a text encoder sees together: a recipe may hold thousands."""


@dataclass(frozen=True, slots=True)
class Conditioning:
    """Arguments of a pipeline call with one row per video: tensors, or lists of images."""

    tensors: dict[str, Tensor | list[Any]]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, part: slice | list[int]) -> Conditioning:
        return Conditioning({name: _take(column, part) for name, column in self.tensors.items()})


def _take(column: Tensor | list[Any], part: slice | list[int]) -> Tensor | list[Any]:
    if isinstance(column, Tensor):
        return column[part]
    return column[part] if isinstance(part, slice) else [column[row] for row in part]


def encode_texts(
    pipe: Any, sampling: SamplingConfig, names: Sequence[str], prompts: list[str]
) -> dict[str, Tensor | list[Any]]:
    """What the pipeline's ``encode_prompt`` returns, under the names by which its loop takes it."""
    groups = [prompts[start : start + _ENCODED_AT_ONCE] for start in range(0, len(prompts), _ENCODED_AT_ONCE)]
    rows = [_encode_group(pipe, sampling, group) for group in groups]
    named = dict(zip(names, zip(*rows, strict=True), strict=True))
    return {name: _shared(torch.cat(column)) for name, column in named.items() if column[0] is not None}


def _encode_group(pipe: Any, sampling: SamplingConfig, prompts: list[str]) -> tuple[Tensor | None, ...]:
    guided = sampling.guidance_scale > 1
    call, accepted = inspect.signature(type(pipe).__call__).parameters, inspect.signature(pipe.encode_prompt)
    arguments = {
        "device": pipe.device,
        "do_classifier_free_guidance": guided,
        "negative_prompt": [sampling.negative_prompt] * len(prompts) if guided else None,
        "num_images_per_prompt": 1,
        "max_sequence_length": call["max_sequence_length"].default if "max_sequence_length" in call else None,
    }
    encoded: tuple[Tensor | None, ...] = pipe.encode_prompt(
        prompts, **{name: value for name, value in arguments.items() if name in accepted.parameters}
    )
    return encoded


def _shared(column: Tensor) -> Tensor:
    """The same rows; equal ones, as those of the negative prompt, occupy memory once."""
    if column.is_meta:  # nobody can say whether they are equal
        return column
    return column[:1].clone().expand_as(column) if bool((column == column[:1]).all()) else column


def open_images(sampling: SamplingConfig, images: Sequence[Path] | None) -> list[Any]:
    """The images at the size of the video, squashed where their shape differs, as the library's examples do.

    Raises:
        ValueError: there are none.
    """
    if not images:
        raise ValueError(
            "prompts: this model makes videos from images; write each prompt as `path/to/image.png | text`"
        )
    size = sampling.width, sampling.height
    return [Image.open(path).convert("RGB").resize(size, Image.Resampling.LANCZOS) for path in images]
