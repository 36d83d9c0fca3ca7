"""Random weights with the names and shapes of published checkpoints, listed in ``tests/data``."""

from __future__ import annotations

import gzip

import torch
from torch import Tensor

from tests.helpers.paths import TESTS


def read_layout(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all weights, from ``tests/data/NAME.txt.gz``."""
    packed = TESTS / "data" / f"{name}.txt.gz"
    lines = [line.split() for line in gzip.decompress(packed.read_bytes()).decode().splitlines()]
    return {key: () if shape == "scalar" else tuple(map(int, shape.split("x"))) for key, shape in lines}


def draw_weights(layout: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Random weights that leave no layer without effect."""
    generator = torch.Generator().manual_seed(seed)
    return {name: _draw(name, shape, generator) for name, shape in sorted(layout.items())}


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    values = torch.randn(shape, generator=generator)
    if len(shape) < 2:
        return 0.1 * values + float(name.endswith(".weight"))  # norms scale by about one
    return values / values[0].numel() ** 0.5


def draw_inputs(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Random inputs of networks by name."""
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def summary(values: Tensor) -> list[float]:
    """Mean, deviation and sixteen evenly spaced values."""
    flat = values.detach().double().flatten()
    samples = flat[torch.linspace(0, len(flat) - 1, 16).long()]
    return [float(number) for number in (flat.mean(), flat.std(), *samples)]
