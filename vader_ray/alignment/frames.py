"""Which frames of a video a reward sees."""

from __future__ import annotations

import torch

from vader_ray.errors import UserError


def choose_frames(rule: str, num_frames: int, generator: torch.Generator) -> tuple[int, ...]:
    """Ascending frame indices by a rule of `vader_ray.config.RewardConfig.frames`.

    The mean over ``random:n`` frames is an unbiased estimate of the mean over all; the authors use ``random:1``.

    Raises:
        UserError: a frame is asked for that the video has not.
    """
    name, _, number = rule.partition(":")
    if name == "all":
        return tuple(range(num_frames))
    if name == "first_middle_last":
        return tuple(sorted({0, num_frames // 2, num_frames - 1}))
    count = int(number)
    if name == "stride":
        return tuple(range(0, num_frames, count))
    limit = count + 1 if name == "frame" else count
    if limit > num_frames:
        raise UserError(f"frames={rule!r} asks for more than the {num_frames} frames of the video")
    if name == "frame":
        return (count,)
    if name == "first":
        return tuple(range(count))
    return tuple(sorted(torch.randperm(num_frames, generator=generator)[:count].tolist()))


def every_frame_rule(rule: str) -> str:
    """The rule for evaluation: what training estimates from random frames is there measured on all."""
    return "all" if rule.startswith("random") else rule
