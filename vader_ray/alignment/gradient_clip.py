"""Clip the reward gradient of each video at a quantile of the latest norms (RSM, arXiv 2604.17415).

The clip of the adapter's gradient (``optimizer.max_grad_norm``) scales a step as a whole, so one video with a
steep reward decides its direction. This one bounds what a single video contributes, before the backward pass
through the gradient steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vader_ray.alignment.running_quantile import RunningQuantile
from vader_ray.types import Latents, Scores

STATE = "latents_gradient_norms"
"""Key of the latest norms in the state of the algorithm (`vader_ray.alignment.base.StepContext`)."""


def latest_norms(quantile: float, state: Mapping[str, list[float]]) -> RunningQuantile:
    """Return the quantile of the latest norms that are in the state of the algorithm."""
    latest = RunningQuantile(quantile)
    latest.load_state_dict(state.get(STATE, []))
    return latest


def add_norms(latest: RunningQuantile, norms: Sequence[float], state: dict[str, list[float]]) -> None:
    """Add the norms of a step's videos, in their order, and write the latest ones to the state.

    Videos without any gradient, which are above a reward's hinge, are left out, as are norms that are not
    finite.
    """
    latest.add([norm for norm in norms if norm > 0])
    state[STATE] = latest.state_dict()


def clip_by_video(gradient: Latents, max_norm: float, scale: float) -> Scores:
    """Scale the gradient of each video down to a norm, in place; return the norms before.

    A gradient that is not finite stays so, and the step is then skipped.

    Args:
        gradient: ``scale`` times ∂objective/∂latents, up to its sign.
        max_norm: largest L2 norm of ∂objective/∂latents of a video; may be infinite.
        scale: positive factor.
    """
    norms: Tensor = gradient.flatten(1).norm(dim=1) / scale
    factors = torch.where(norms > max_norm, max_norm / norms, torch.ones_like(norms))
    gradient *= factors[:, None, None, None, None]
    return norms
