"""VBench's quality score (arXiv 2311.17982) of six of its seven dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field

from vader_ray.metrics.aesthetic_quality import AestheticQualityMetric
from vader_ray.metrics.background_consistency import WEIGHTS as CLIP
from vader_ray.metrics.background_consistency import BackgroundConsistencyMetric
from vader_ray.metrics.core.network import NetworkMetric
from vader_ray.metrics.dynamic_degree import DynamicDegreeMetric
from vader_ray.metrics.imaging_quality import ImagingQualityMetric
from vader_ray.metrics.subject_consistency import WEIGHTS as DINO
from vader_ray.metrics.subject_consistency import SubjectConsistencyMetric
from vader_ray.metrics.temporal_flickering import TemporalFlickeringMetric
from vader_ray.rewards.aesthetic import ENCODER
from vader_ray.rewards.core.raft import Architecture
from vader_ray.types import Frames, Scores
from vader_ray.weights import Source

RANGES = {
    "subject_consistency": (0.1462, 1.0),
    "background_consistency": (0.2615, 1.0),
    "temporal_flickering": (0.6293, 1.0),
    "dynamic_degree": (0.0, 1.0),
    "aesthetic_quality": (0.0, 1.0),
    "imaging_quality": (0.0, 1.0),
}
"""VBench's least and largest value of each dimension, which become 0 and 1."""
WEIGHTS = dict.fromkeys(RANGES, 1.0) | {"dynamic_degree": 0.5}
"""VBench's weight of each dimension."""


class VbenchQualityMetric(NetworkMetric):
    """Weighted mean of six dimensions, normalised and weighted as VBench does, and each dimension as it is.

    Motion smoothness, VBench's seventh dimension, is left out: its network (AMT) may not be used
    commercially. And VBench's numbers are of its own prompts, 5 videos of each, at 8 frames per second. So
    ``quality`` compares two models in the same evaluation, and not with VBench's leaderboard.

    Args:
        dino: of `subject_consistency`.
        clip: of `background_consistency`.
        encoder: of `aesthetic_quality`.
        head: of `aesthetic_quality`.
        musiq: weights of `imaging_quality`.
        raft: weights of `dynamic_degree`.
        architecture: of `dynamic_degree`.
        frames_per_second: of the videos.
    """

    unit = "quality: weighted mean of normalised dimensions, about 0 to 1; others: see their own metrics"
    parts = ("quality", *RANGES)
    default_weights = f"{DINO}, {CLIP}, {ENCODER}, LAION-AI, chaofengc/IQA-PyTorch, pytorch/vision"
    licence = "see the six metrics"

    def __init__(  # noqa: PLR0913  (one option for each file of weights)
        self,
        *,
        dino: Source = DINO,
        clip: Source = CLIP,
        encoder: Source = ENCODER,
        head: Source | None = None,
        musiq: Source | None = None,
        raft: Source | None = None,
        architecture: Architecture = "large",
        frames_per_second: Annotated[float, Field(gt=0)] = 8.0,
    ) -> None:
        super().__init__()
        self.subject = SubjectConsistencyMetric(weights=dino)
        self.background = BackgroundConsistencyMetric(weights=clip)
        self.aesthetic = AestheticQualityMetric(encoder=encoder, head=head)
        self.imaging = ImagingQualityMetric(weights=musiq)
        self.dynamic = DynamicDegreeMetric(
            weights=raft, architecture=architecture, frames_per_second=frames_per_second
        )

    def measure(self, frames: Frames) -> Mapping[str, Scores]:
        """Return the quality and the six dimensions of each video."""
        dimensions = {
            "subject_consistency": self.subject.measure(frames),
            "background_consistency": self.background.measure(frames),
            "temporal_flickering": TemporalFlickeringMetric()(frames, [""] * len(frames)),
            "dynamic_degree": self.dynamic.measure(frames)["moving"],
            "aesthetic_quality": self.aesthetic.measure(frames),
            "imaging_quality": self.imaging.measure(frames),
        }
        return {"quality": quality(dimensions), **dimensions}


def quality(dimensions: Mapping[str, Scores]) -> Scores:
    """Return the weighted mean of the normalised dimensions of each video."""
    normalised = {
        name: (dimensions[name] - least) / (largest - least) for name, (least, largest) in RANGES.items()
    }
    weighted = torch.stack([WEIGHTS[name] * value for name, value in normalised.items()])
    return weighted.sum(dim=0) / sum(WEIGHTS.values())
