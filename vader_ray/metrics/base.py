"""Protocols of a metric: a number per held-out video that is measured in every evaluation and never trained.

A metric is frozen, in eval mode, and keeps no state from one call to the next. Its class is one of three
kinds:

* `VideoMetric` scores each video by itself;
* `SetMetric` compares the held-out videos with one another;
* `PairedMetric` compares each held-out video with the base model's video of the same prompt and noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

from jaxtyping import Shaped
from torch import Tensor

from vader_ray.types import Frames, Scores

Features: TypeAlias = Shaped[Tensor, "videos features"]
"""One vector per video, which a metric compares with others; gathered over the workers, so keep it small."""


@runtime_checkable
class VideoMetric(Protocol):
    """Score of each video by itself."""

    unit: str
    """Unit and range of the scores, for reports: ``pixels per frame, 0 still``."""
    higher_is_better: bool
    """Direction that the guard defends: with True it fires on a fall, with False on a rise."""
    parts: tuple[str, ...]
    """Names of several scores, logged as ``eval/METRIC/PART``; empty for a single score."""

    def __call__(self, frames: Frames, prompts: Sequence[str], /) -> Scores | Mapping[str, Scores]:
        """Return one score per video, or one per video and part; video ``i`` was made for ``prompts[i]``."""
        ...


@runtime_checkable
class SetMetric(Protocol):
    """Score of each video among all held-out videos."""

    unit: str
    """Unit and range of the scores, for reports."""
    higher_is_better: bool
    """Direction that the guard defends: with True it fires on a fall, with False on a rise."""

    def features(self, frames: Frames, /) -> Features:
        """Return the vector of each video that is compared, a function of that video alone."""
        ...

    def compare(self, features: Features, prompts: Sequence[str], /) -> Scores:
        """Return one score per video of the set; video ``i`` was made for ``prompts[i]``.

        An evaluation calls it for all videos, and for those without each prompt: keep it cheap.
        """
        ...


@runtime_checkable
class PairedMetric(Protocol):
    """Difference of each video from the base model's of the same prompt and noise; 0 if they are equal."""

    unit: str
    """Unit and range of the scores, for reports."""
    higher_is_better: bool
    """Direction that the guard defends: with True it fires on a fall, with False on a rise."""

    def features(self, frames: Frames, /) -> Features:
        """Return the vector of each video that is compared, a function of that video alone."""
        ...

    def compare_with_base(self, features: Features, base: Features, /) -> Scores:
        """Return one score per video, row ``i`` of ``features`` against row ``i`` of ``base``."""
        ...


Metric: TypeAlias = VideoMetric | SetMetric | PairedMetric
"""Any of the three kinds."""
