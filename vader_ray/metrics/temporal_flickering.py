"""VBench's temporal flickering (arXiv 2311.17982): how little neighbouring frames differ."""

from __future__ import annotations

from collections.abc import Sequence

from vader_ray.types import Frames, Scores


class TemporalFlickeringMetric:
    """1 minus the mean absolute difference of neighbouring frames; 1 for a single frame.

    It cannot distinguish flicker from motion, and a still video scores 1: watch a measure of motion beside
    it.
    """

    unit = "1 − mean absolute difference of neighbouring frames, 0 to 1 still"
    higher_is_better = True
    parts: tuple[str, ...] = ()

    def __call__(self, frames: Frames, prompts: Sequence[str], /) -> Scores:
        """Return one score per video."""
        pixels = frames.float()
        if frames.shape[1] < 2:
            return pixels.new_ones(len(frames))
        return 1 - pixels.diff(dim=1).abs().mean(dim=(1, 2, 3, 4))
