"""Distance to the base model: how far training has moved the held-out videos; needs no weights."""

from __future__ import annotations

from vader_ray.metrics.core.thumbnails import Thumbnails, thumbnails
from vader_ray.types import Frames, Scores


class DistanceToBaseMetric:
    """Root mean square difference of a video's thumbnail to that of the base model's video."""

    unit = "root mean square difference of thumbnails, 0 alike to 1"
    higher_is_better = False

    def features(self, frames: Frames, /) -> Thumbnails:
        """Return the thumbnail of each video."""
        return thumbnails(frames)

    def compare_with_base(self, features: Thumbnails, base: Thumbnails, /) -> Scores:
        """Return the distance of each video to its counterpart."""
        return ((features.float() - base.float()) / 255).square().mean(dim=1).sqrt()
