"""Diversity: the distance between the thumbnails of a prompt's videos; needs no weights."""

from __future__ import annotations

from collections.abc import Sequence

from vader_ray.metrics.core.statistics import mean_to_others
from vader_ray.metrics.core.thumbnails import Thumbnails, thumbnails
from vader_ray.types import Frames, Scores


class DiversityMetric:
    """Mean distance of a video to the others of its prompt, or to all others if its prompt has none.

    The distance is the root mean square difference of two thumbnails. It falls to 0 where a model has
    collapsed to one video.
    """

    unit = "root mean square difference of thumbnails within a prompt, 0 alike to 1"
    higher_is_better = True

    def features(self, frames: Frames, /) -> Thumbnails:
        """Return the thumbnail of each video."""
        return thumbnails(frames)

    def compare(self, features: Thumbnails, prompts: Sequence[str], /) -> Scores:
        """Return the mean distance of each video to the others; 0 for a single video."""
        rows = features.double() / 255  # float64, since a distance of like videos is a small difference
        squares, products = (rows**2).sum(dim=1), rows @ rows.T
        apart = (squares[:, None] + squares - 2 * products).clamp(min=0).sqrt() / rows.shape[1] ** 0.5
        return mean_to_others(apart.float(), prompts)
