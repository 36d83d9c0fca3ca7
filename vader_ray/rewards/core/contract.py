"""Check the contract of rewards on random frames."""

from __future__ import annotations

import torch
from torch import Tensor

from vader_ray.errors import UserError, explain_plugin_errors
from vader_ray.types import Reward

PROMPTS = ("a red circle moving left", "a blue square moving up")
"""Prompts of the two random videos."""


def check_contract(
    reward: Reward,
    *,
    name: str = "reward",
    device: torch.device | str = "cpu",
    num_frames: int = 2,
    height: int = 32,
    width: int = 32,
) -> None:
    """Check a reward on two random videos.

    It must declare its granularity and unit, and return one finite float32 or float64 score per video. The
    gradient with respect to the frames must be finite and not zero everywhere. No video may influence
    another's score, and with granularity ``frame`` no frame another's.

    Args:
        reward: any reward.
        name: for messages.
        device: of the frames.
        num_frames: frames of a video.
        height: of a frame in pixels.
        width: of a frame in pixels.

    Raises:
        UserError: names the reward and the violation.
        RunFailed: the reward raised an exception.
    """
    if getattr(reward, "granularity", None) not in ("frame", "clip") or not isinstance(
        getattr(reward, "unit", None), str
    ):
        raise UserError(f"reward {name!r} must declare granularity ('frame' or 'clip') and unit (a text)")
    frames = random_frames(num_frames, height, width).to(device).requires_grad_()
    with torch.enable_grad():
        with explain_plugin_errors(f"reward {name!r}"):
            scores = reward(frames, PROMPTS)
        check_scores(scores, f"reward {name!r}")
        _check_gradient(scores, frames, name)
    with torch.no_grad(), explain_plugin_errors(f"reward {name!r}"):
        _check_separation(reward, frames, scores.detach(), name)


def random_frames(num_frames: int, height: int, width: int) -> Tensor:
    """Draw a bright and a dark video, with values away from 0 and 1, where a clamp has no gradient."""
    noise = torch.rand(2, num_frames, 3, height, width, generator=torch.Generator().manual_seed(0))
    return 0.4 * noise + torch.tensor([0.5, 0.1]).view(2, 1, 1, 1, 1)


def check_scores(scores: object, subject: str) -> None:
    """Check that the scores of the two videos are finite and in float32 or float64.

    Raises:
        UserError: names ``subject`` and the violation.
    """
    if not isinstance(scores, Tensor):
        raise UserError(f"{subject} returned {type(scores).__name__}; expected a tensor of shape (batch,)")
    if scores.shape != (len(PROMPTS),):
        raise UserError(
            f"{subject} returned shape {tuple(scores.shape)} for 2 videos; expected (batch,), here (2,)"
        )
    if scores.dtype not in (torch.float32, torch.float64):
        raise UserError(f"{subject} returned {scores.dtype}; expected float32 or float64 scores")
    if not scores.isfinite().all():
        raise UserError(
            f"{subject} returned {'NaN' if scores.isnan().any() else 'infinity'} for frames in [0, 1]"
        )


def _check_gradient(scores: Tensor, frames: Tensor, name: str) -> None:
    if not scores.requires_grad:
        raise UserError(
            f"reward {name!r} has no gradient with respect to frames; keep no_grad, detach and rounding out "
            "of it"
        )
    for video in range(len(PROMPTS)):
        (gradient,) = torch.autograd.grad(scores[video], frames, retain_graph=True, allow_unused=True)
        if gradient is None or not gradient[video].any():
            raise UserError(
                f"reward {name!r} has no gradient with respect to frames, or it is zero everywhere"
            )
        if not gradient.isfinite().all():
            raise UserError(f"reward {name!r} has a gradient with respect to frames that is not finite")
        if gradient[1 - video].any():
            raise UserError(
                f"reward {name!r} leaks between videos: the score of one has a gradient on the other"
            )


def _check_separation(reward: Reward, frames: Tensor, scores: Tensor, name: str) -> None:
    for video, prompt in enumerate(PROMPTS):
        alone = reward(frames[video : video + 1], [prompt])
        if not is_same(alone[0], scores[video]):
            raise UserError(
                f"reward {name!r} leaks between videos: video {video} scores {scores[video]:.6g} in a batch "
                f"and {alone[0]:.6g} alone"
            )
    if reward.granularity == "frame":
        mean = reward(frames[0, :, None], [PROMPTS[0]] * frames.shape[1]).mean()
        if not is_same(mean, scores[0]):
            raise UserError(
                f"reward {name!r} declares granularity 'frame', but a video scores {scores[0]:.6g} and its "
                f"single frames {mean:.6g} on average; declare 'clip'"
            )


def is_same(score: Tensor, expected: Tensor) -> bool:
    """Compare up to the rounding of bfloat16, about 0.001 of a cosine.

    Another batch size uses other kernels.
    """
    return torch.allclose(score.to(expected), expected, rtol=1e-2, atol=1e-3)
