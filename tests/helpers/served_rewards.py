"""Rewards that real actors are made of in the tests of the reward service."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from vader_ray.rewards.core.resizing import Resizing
from vader_ray.types import Frames, Granularity, Scores


class Clip:
    """Couples the frames nonlinearly, and takes its time."""

    granularity: Granularity = "clip"
    unit = "none"

    def __init__(self, *, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def __call__(self, frames: Frames, prompts: Sequence[str], /) -> Scores:
        """One score per video."""
        time.sleep(self.seconds)
        return -(frames[:, 1:] * frames[:, :-1]).mean(dim=(1, 2, 3, 4)).exp()


class Centre:
    """Sees the centre of the frames, and says so."""

    granularity: Granularity = "frame"
    unit = "none"

    def resizing(self, height: int, width: int) -> Resizing:
        """Frames as they are, and the rows and columns that count."""
        return Resizing(height, width, slice(height // 4, height - height // 4), slice(2, width - 2))

    def __call__(self, frames: Frames, prompts: Sequence[str], /) -> Scores:
        """One score per video."""
        seen = self.resizing(*frames.shape[-2:])
        return frames[..., seen.rows, seen.columns].square().mean(dim=(1, 2, 3, 4))


class Broken:
    """Keeps its contract while it is loaded; from then on it fails in the way that it is told."""

    granularity: Granularity = "clip"
    unit = "none"

    def __init__(self, *, how: str, mark: str) -> None:
        self.how, self.mark = how, Path(mark)

    def __call__(self, frames: Frames, prompts: Sequence[str], /) -> Scores:
        """One score per video."""
        scores = frames.mean(dim=(1, 2, 3, 4))
        if "break" not in prompts[0]:
            return scores
        if self.how == "error":
            raise RuntimeError("the lamp of the projector is broken")
        if self.how == "nan":
            return scores * float("nan")
        if not self.mark.exists():  # silent once
            self.mark.touch()
            time.sleep(60)
        return scores


class Pairs:
    """Takes two frames and nothing else, and asks the environment by how much it multiplies."""

    granularity: Granularity = "clip"
    unit = "none"

    def __call__(self, frames: Frames, prompts: Sequence[str], /) -> Scores:
        """One score per video."""
        if frames.shape[1] != 2:
            raise ValueError(f"it compares two frames, not {frames.shape[1]}")
        factor = float(os.environ["TEST_FACTOR"])
        return factor * (frames[:, 0] * frames[:, 1]).mean(dim=(1, 2, 3))
