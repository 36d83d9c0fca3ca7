"""Call a reward and check what it returns, so that a mistake in its code is named."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vader_ray.errors import RunFailed, UserError, explain_plugin_errors
from vader_ray.types import Frames, Reward, Scores


def call_reward(reward: Reward, frames: Frames, prompts: Sequence[str], name: str) -> Scores:
    """Return one score per video.

    Args:
        name: of the reward in the recipe, for messages.

    Raises:
        RunFailed: the reward raised an exception, or did not return one score per video.
    """
    with explain_plugin_errors(f"reward {name!r}"):
        scores = reward(frames, prompts)
    if not isinstance(scores, Tensor):
        raise RunFailed(
            f"reward {name!r} returned {type(scores).__name__}; expected a tensor with one score per video"
        )
    if scores.shape != (len(frames),):
        raise RunFailed(
            f"reward {name!r} returned shape {tuple(scores.shape)} for {len(frames)} videos; "
            "expected one score per video"
        )
    return scores


def call_gradient(scores: Scores, frames: Frames, name: str) -> Frames:
    """Return ∂(sum of scores)/∂frames.

    Raises:
        UserError: the scores have no gradient.
        RunFailed: the backward pass of the reward raised an exception.
    """
    if not scores.requires_grad:
        raise UserError(
            f"reward {name!r} has no gradient with respect to the frames; "
            "compute it with differentiable torch operations"
        )
    with explain_plugin_errors(f"the backward pass of reward {name!r}"):
        (gradient,) = torch.autograd.grad(scores.sum(), frames)
    return gradient
