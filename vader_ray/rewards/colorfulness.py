"""Colourfulness (Hasler and Süsstrunk, "Measuring colourfulness in natural images", 2003)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vader_ray.types import Frames, Granularity, Scores

WHITE = 255.0
"""Value of white: the published scale is that of 8-bit images."""
ROUNDING = 0.01
"""Smoothing of the two square roots at 0, on the same scale, so that the gradient of a grey frame is 0 and
not NaN."""


class ColorfulnessReward:
    """The mean over frames of M = √(σ²_rg + σ²_yb) + 0.3 √(μ²_rg + μ²_yb).

    Here rg = R − G and yb = (R + G)/2 − B.

    The published value within `ROUNDING`: 0 not colourful, 15 slightly, 33 moderately, 45 averagely, 59
    quite, 82 highly and 109 extremely colourful (table 2 there); at most about 250. The prompts have no
    influence.
    """

    granularity: Granularity = "frame"
    unit = "Hasler-Süsstrunk M of 8-bit pixels, 0 grey to about 110 extremely colourful"
    default_weights = ""
    licence = ""

    def __call__(self, frames: Frames, prompts: Sequence[str], /) -> Scores:
        """Return one score per video."""
        red, green, blue = (WHITE * frames).flatten(3).unbind(dim=2)
        opponents = (red - green, (red + green) / 2 - blue)
        spread = sum(channel.var(dim=-1, correction=0) for channel in opponents)
        mean = sum(channel.mean(dim=-1).square() for channel in opponents)
        return (_root(spread) + 0.3 * _root(mean)).mean(dim=1)


def _root(squares: Tensor | int) -> Tensor:
    assert isinstance(squares, Tensor)
    return (squares + ROUNDING**2).sqrt() - ROUNDING
