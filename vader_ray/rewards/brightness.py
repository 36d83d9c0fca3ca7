"""Mean luminance: the shortest reward, and an example of one without a network."""

from __future__ import annotations

from collections.abc import Sequence

from vader_ray.types import Frames, Granularity, Scores

LUMINANCE = (0.2126, 0.7152, 0.0722)
"""Weights of red, green and blue (ITU-R BT.709)."""


class BrightnessReward:
    """The mean luminance of a video, from 0 (black) to 1 (white)."""

    granularity: Granularity = "frame"
    unit = "luminance, 0 to 1"
    default_weights = ""
    licence = ""

    def __call__(self, frames: Frames, prompts: Sequence[str], /) -> Scores:
        """Return one score per video; the prompts have no influence."""
        return (frames.mean(dim=(1, 3, 4)) * frames.new_tensor(LUMINANCE)).sum(dim=1)
