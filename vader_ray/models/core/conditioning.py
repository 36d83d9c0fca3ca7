"""Per-video conditioning: prompt embeddings and first-frame images."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import is_bs4_available, is_ftfy_available
from PIL import Image
from torch import Tensor

from vader_ray.config import SamplingConfig
from vader_ray.errors import UserError

_TEXT_BATCH_SIZE = 8
"""Prompts that the text encoder encodes at once; a recipe may have thousands."""


@dataclass(frozen=True, slots=True)
class Conditioning:
    """Arguments of a pipeline's call with one row per video; can be sliced."""

    tensors: dict[str, Tensor | list[Any]]
    """Tensors, or lists of images or of texts that are not encoded yet, by the argument's name."""

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, part: slice | list[int]) -> Conditioning:
        return Conditioning({name: _take(column, part) for name, column in self.tensors.items()})


def _take(column: Tensor | list[Any], part: slice | list[int]) -> Tensor | list[Any]:
    if isinstance(column, Tensor):
        return column[part]
    return column[part] if isinstance(part, slice) else [column[row] for row in part]


@dataclass(frozen=True, slots=True)
class TextEncoding:
    """Differences of a pipeline's ``encode_prompt`` from that of most pipelines."""

    negative_apart: bool = False
    """Whether it takes no negative prompt, which is then encoded by a call of its own."""
    lengths_differ: bool = False
    """Whether the number of tokens is that of the prompt. Videos are then sampled one by one."""


def encode_texts(
    pipe: Any, sampling: SamplingConfig, names: Sequence[str], encoding: TextEncoding, prompts: Sequence[str]
) -> dict[str, Tensor | list[Any]]:
    """Encode prompts by the pipeline's ``encode_prompt``.

    Args:
        pipe: the pipeline.
        sampling: whether there is guidance, and the negative prompt.
        names: arguments of the pipeline's call that take the return values.
        encoding: differences of ``encode_prompt``.
        prompts: texts.

    Returns:
        Tensors by the names of the loop's arguments, one row per prompt; if their lengths differ, lists of
        tensors with one row each.
    """
    size = 1 if encoding.lengths_differ else _TEXT_BATCH_SIZE
    groups = [list(prompts[start : start + size]) for start in range(0, len(prompts), size)]
    columns = _encode_groups(pipe, sampling, names, groups)
    if encoding.negative_apart and sampling.guidance_scale > 1:
        negative = [[sampling.negative_prompt] * len(group) for group in groups]
        encoded = _encode_groups(pipe, sampling, names, negative)
        columns |= {f"negative_{name}": column for name, column in encoded.items()}
    if encoding.lengths_differ:
        return {name: list(column) for name, column in columns.items()}
    return {name: _shared(torch.cat(column)) for name, column in columns.items()}


def _encode_groups(
    pipe: Any, sampling: SamplingConfig, names: Sequence[str], groups: Sequence[list[str]]
) -> dict[str, list[Tensor]]:
    rows = [_encode_group(pipe, sampling, group) for group in groups]
    named = dict(zip(names, zip(*rows, strict=True), strict=True))
    return {name: list(column) for name, column in named.items() if column[0] is not None}


def _encode_group(pipe: Any, sampling: SamplingConfig, prompts: list[str]) -> tuple[Tensor | None, ...]:
    guided = sampling.guidance_scale > 1
    # Stable Diffusion XL was trained with zeros for an empty prompt, which its pipelines take from None
    is_zero = not sampling.negative_prompt and pipe.config.get("force_zeros_for_empty_prompt", False)
    accepted = list(inspect.signature(pipe.encode_prompt).parameters)[1:]
    call = inspect.signature(type(pipe).__call__).parameters
    arguments = {name: call[name].default for name in accepted if name in call} | {
        "device": pipe.device,
        "do_classifier_free_guidance": guided,
        "negative_prompt": [sampling.negative_prompt] * len(prompts) if guided and not is_zero else None,
        "num_images_per_prompt": 1,
        "batch_size": len(prompts),
    }
    if not (is_bs4_available() and is_ftfy_available()):
        arguments["clean_caption"] = False  # what the pipeline does without them, with a warning each time
    encoded: tuple[Tensor | None, ...] = pipe.encode_prompt(
        prompts, **{name: value for name, value in arguments.items() if name in accepted}
    )
    return encoded


def _shared(column: Tensor) -> Tensor:
    """Return the same rows; if all are equal, as those of the negative prompt, one is stored."""
    if column.is_meta:  # without values to compare
        return column
    return column[:1].clone().expand_as(column) if bool((column == column[:1]).all()) else column


def open_images(sampling: SamplingConfig, images: Sequence[Path] | None) -> list[Any]:
    """Open images and resize them to the size of the video.

    The aspect ratio is not kept, as in the library's examples.

    Raises:
        UserError: there are no images.
    """
    if not images:
        raise UserError(
            "prompts: this model makes videos from images; write each prompt as `path/to/image.png | text`"
        )
    size = sampling.width, sampling.height
    return [Image.open(path).convert("RGB").resize(size, Image.Resampling.LANCZOS) for path in images]
