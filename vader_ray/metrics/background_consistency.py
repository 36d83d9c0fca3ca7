"""VBench's background consistency (arXiv 2311.17982): CLIP features of the frames stay alike."""

from __future__ import annotations

from vader_ray.metrics.core.consistency import consistency
from vader_ray.metrics.core.network import ClipMetric, embed
from vader_ray.rewards.core.transformers_loading import TRANSFORMERS_FILES
from vader_ray.types import Frames, Scores
from vader_ray.weights import Source, resolve_weights

WEIGHTS = "openai/clip-vit-base-patch32"


class BackgroundConsistencyMetric(ClipMetric):
    """Mean cosine of each frame's CLIP features with those of the frame before and of the first frame.

    A still video scores 1: watch a measure of motion beside it.

    Args:
        weights: hub repository or local folder in transformers' format.
    """

    unit = "cosine of CLIP features, 0 to 1 alike"
    default_weights = WEIGHTS
    licence = "MIT"

    def __init__(self, *, weights: Source = WEIGHTS) -> None:
        super().__init__(resolve_weights(weights, *TRANSFORMERS_FILES))

    def measure(self, frames: Frames) -> Scores:
        """Return one score per video."""
        return consistency(embed(self.features, frames))
