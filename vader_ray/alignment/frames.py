"""Rules that choose the frames of a video that a reward scores."""

from __future__ import annotations

import torch

from vader_ray.config import frames_needed
from vader_ray.errors import UserError


def choose_frames(rule: str, num_frames: int, generator: torch.Generator) -> tuple[int, ...]:
    """Return ascending frame indices by a rule of `vader_ray.config.RewardConfig.frames`.

    The mean over ``random:n`` frames is an unbiased estimate of the mean over all; the VADER authors use
    ``random:1``.

    Args:
        rule: the rule.
        num_frames: number of frames of the video.
        generator: source of ``random:n``; the other rules draw nothing.

    Raises:
        UserError: the rule chooses a frame beyond the end of the video.
    """
    name, _, number = rule.partition(":")
    if name == "all":
        return tuple(range(num_frames))
    if name == "first_middle_last":
        return tuple(sorted({0, num_frames // 2, num_frames - 1}))
    count = int(number)
    if name == "stride":
        return tuple(range(0, num_frames, count))
    if (needed := frames_needed(rule)) > num_frames:
        raise UserError(f"frames={rule!r} needs {needed} frames, and the video has {num_frames}")
    if name == "frame":
        return (count,)
    if name == "first":
        return tuple(range(count))
    return tuple(sorted(torch.randperm(num_frames, generator=generator)[:count].tolist()))


def every_frame_rule(rule: str) -> str:
    """Return the rule for evaluations, which score all frames if training scores random ones."""
    return "all" if rule.startswith("random") else rule
