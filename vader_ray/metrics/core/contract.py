"""The contract of every metric, checked on random frames before a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vader_ray.errors import UserError
from vader_ray.metrics.base import PairedMetric, SetMetric, VideoMetric
from vader_ray.rewards.core.contract import PROMPTS, check_scores, is_same, random_frames
from vader_ray.types import Frames


@torch.no_grad()
def check_contract(
    metric: object,
    *,
    name: str = "metric",
    device: torch.device | str = "cpu",
    num_frames: int = 2,
    height: int = 32,
    width: int = 32,
) -> None:
    """Check a metric on two random videos: shapes, finite numbers, and independent videos.

    Raises:
        UserError: names the metric and what is wrong.
    """
    subject = f"metric {name!r}"
    if not isinstance(metric, VideoMetric | SetMetric | PairedMetric):
        raise UserError(
            f"{subject} must declare unit and higher_is_better, and have either __call__ and parts, "
            "features and compare, or features and compare_with_base"
        )
    if not isinstance(metric.unit, str) or not isinstance(metric.higher_is_better, bool):
        raise UserError(f"{subject} must declare unit (a text) and higher_is_better (True or False)")
    frames = random_frames(num_frames, height, width).to(device)
    if isinstance(metric, VideoMetric):
        _check_video_metric(metric, frames, subject)
        return
    features = _check_features(metric, frames, subject)
    if isinstance(metric, SetMetric):
        check_scores(metric.compare(features, PROMPTS), subject)
        return
    check_scores(metric.compare_with_base(features, features.flip(0)), subject)
    if metric.compare_with_base(features, features).any():
        raise UserError(f"{subject} must give 0 for the base model's own videos")


def _check_video_metric(metric: VideoMetric, frames: Frames, subject: str) -> None:
    together = _by_part(metric, frames, PROMPTS, subject)
    for part, scores in together.items():
        check_scores(scores, f"{subject} ({part})" if part else subject)
    for video, prompt in enumerate(PROMPTS):
        alone = _by_part(metric, frames[video : video + 1], (prompt,), subject)
        if not all(is_same(alone[part][0], scores[video]) for part, scores in together.items()):
            raise UserError(
                f"{subject} leaks between videos: the score of one changes with another in its batch"
            )


def _by_part(metric: VideoMetric, frames: Frames, prompts: tuple[str, ...], subject: str) -> dict[str, Any]:
    """The scores of each part of a metric; of one without parts under the empty name."""
    scores = metric(frames, prompts)
    found = dict(scores) if isinstance(scores, Mapping) else {"": scores}
    if tuple(found) != (metric.parts or ("",)):
        given = ", ".join(found) if isinstance(scores, Mapping) else "a single score"
        raise UserError(
            f"{subject} declares parts={metric.parts} and returned {given}; return one score per part"
        )
    return found


def _check_features(metric: SetMetric | PairedMetric, frames: Frames, subject: str) -> Tensor:
    features = metric.features(frames)
    if (
        not isinstance(features, Tensor)
        or features.ndim != 2
        or len(features) != len(PROMPTS)
        or not features.isfinite().all()
    ):
        raise UserError(f"{subject} must give finite features of shape (videos, features) for 2 videos")
    for video in range(len(PROMPTS)):
        alone = metric.features(frames[video : video + 1])
        if not is_same(alone[0].float(), features[video].float()):
            raise UserError(
                f"{subject} leaks between videos: the features of one change with another in its batch"
            )
    return features
