"""Brightness with a weight, which records where its weights are meant to be."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vader_ray.types import Frames, Granularity, Scores


class Moved(nn.Module):
    """Mean brightness times a weight of 1."""

    granularity: Granularity = "frame"
    unit = "brightness, 0 to 1"

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(()))
        self.weight: Tensor
        self.moves = list[str]()
        """Arguments of all calls of ``to``, and ``score`` for each score."""

    def to(self, *args: Any, **kwargs: Any) -> Moved:
        """Move the weight and record it."""
        self.moves.append(repr(args[0] if args else kwargs["device"]))
        return super().to(*args, **kwargs)

    def forward(self, frames: Frames, prompts: list[str]) -> Scores:
        """Return one score per video."""
        self.moves.append("score")
        return (frames.mean(dim=(1, 2, 3, 4)) * self.weight).float()
