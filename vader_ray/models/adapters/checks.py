"""Checks of a saved adapter's settings and weights, with a message that names the wrong one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from vader_ray.config import AdapterConfig, section
from vader_ray.errors import UserError

DOWN, UP = ".lora_A.weight", ".lora_B.weight"
"""Ends of the keys of a layer's A (``rank × in``) and B (``out × rank``)."""
_OTHER_UPDATES = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern")
"""Settings of peft that make the update another one than ``alpha / rank · B A``."""


def check_settings(settings: Any, source: Path) -> AdapterConfig:
    """Return rank, alpha and target modules from peft's settings.

    Raises:
        UserError: one is missing or of the wrong kind, or the update is not that of a plain LoRA.
    """
    if not isinstance(settings, Mapping):
        raise _refused(source, f"its settings are a {type(settings).__name__}, not a table")
    rank, alpha, targets = (settings.get(name) for name in ("r", "lora_alpha", "target_modules"))
    if not _is_number(rank) or int(rank) != rank or rank < 1:
        raise _refused(source, f"its setting r is {_shown(rank)}, not a whole number of at least 1")
    if not _is_number(alpha) or alpha <= 0:
        raise _refused(source, f"its setting lora_alpha is {_shown(alpha)}, not a number above 0")
    if not isinstance(targets, list) or not targets or not all(isinstance(name, str) for name in targets):
        raise _refused(source, f"its setting target_modules is {_shown(targets)}, not a list of names")
    if other := [name for name in _OTHER_UPDATES if settings.get(name)]:
        raise UserError(
            f"the adapter in {source} has {other[0]}={_shown(settings[other[0]])}, which is not supported; "
            "give a plain LoRA, with one rank and one alpha for all layers"
        )
    shape = {"rank": int(rank), "alpha": float(alpha), "target_modules": sorted(targets)}
    return section(AdapterConfig, shape, f"the adapter in {source}")


def check_weights(weights: Mapping[str, Tensor], rank: int, source: Path) -> None:
    """Check that every layer has both matrices, of this rank, with finite values.

    Raises:
        UserError: names the first tensor of which this is not true.
    """
    if not weights:
        raise _refused(source, "it has no tensors")
    for name, value in sorted(weights.items()):
        if not name.endswith((DOWN, UP)):
            raise _refused(source, f"{name} is no matrix A or B of a layer")
        is_down = name.endswith(DOWN)
        other = name.removesuffix(DOWN) + UP if is_down else name.removesuffix(UP) + DOWN
        if other not in weights:
            raise _refused(source, f"it has {name} without {other}")
        if value.ndim < 2 or value.shape[0 if is_down else 1] != rank:
            raise _refused(source, f"{name} has the shape {tuple(value.shape)}, which is not of rank {rank}")
        if not value.is_floating_point():
            raise _refused(source, f"{name} has numbers of the type {value.dtype}, not floating-point ones")
        if not torch.isfinite(value).all():
            raise _refused(source, f"{name} has values that are not finite")


def _is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value is a finite number that a float can hold."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _shown(value: Any) -> str:
    return "missing" if value is None else repr(value)[:60]


def _refused(source: Path, problem: str) -> UserError:
    return UserError(
        f"the adapter in {source} is damaged or no LoRA: {problem}; take another copy or an earlier "
        "checkpoint"
    )
