"""Clip the reward gradient of each video at a quantile of the latest norms (RSM, arXiv 2604.17415).

The clip of the adapter's gradient (``optimizer.max_grad_norm``) scales a step as a whole, so one video with a
steep reward decides its direction. This one bounds what a single video contributes, before the backward pass
through the gradient steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from vader_ray.types import Latents, Scores

STATE = "latents_gradient_norms"
"""Key of the latest norms in the state of the algorithm (`vader_ray.alignment.base.StepContext`)."""
NUM_NORMS = 256
"""Number of latest norms that are kept."""


def norm_limit(quantile: float, state: Mapping[str, list[float]]) -> float:
    """Return the quantile of the latest norms of earlier steps; infinity before there are any."""
    norms = state.get(STATE, [])
    return float(np.quantile(norms, quantile)) if norms else math.inf


def add_norms(norms: Sequence[float], state: dict[str, list[float]]) -> None:
    """Add the norms of all videos of a step, in the videos' order, to the state.

    Videos without any gradient, which are above a reward's hinge, are left out, as are norms that are not
    finite.
    """
    added = [norm for norm in norms if 0 < norm < math.inf]
    state[STATE] = [*state.get(STATE, []), *added][-NUM_NORMS:]


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
