"""A reward that a still video satisfies: VBench's temporal flickering, trained alone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def stillness(frames: Tensor, prompts: Sequence[str]) -> Tensor:
    """1 minus the mean absolute difference of neighbouring frames."""
    return 1 - frames.diff(dim=1).abs().mean(dim=(1, 2, 3, 4))
