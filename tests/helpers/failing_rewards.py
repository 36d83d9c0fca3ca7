"""Rewards whose code ends the process, or raises an error."""

from __future__ import annotations

import os
from collections.abc import Sequence

from vader_ray.types import Frames, Granularity, Scores


class Exits:
    """Ends its process as a crash of a library does, without an exception."""

    granularity: Granularity = "frame"
    unit = "none"

    def __call__(self, frames: Frames, prompts: Sequence[str], /) -> Scores:
        """End the process."""
        os._exit(7)


class Raises:
    """Has a mistake."""

    granularity: Granularity = "frame"
    unit = "none"

    def __call__(self, frames: Frames, prompts: Sequence[str], /) -> Scores:
        """Raise an error."""
        raise IndexError("no such frame")
