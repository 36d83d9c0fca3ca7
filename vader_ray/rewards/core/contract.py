"""What every reward owes the engine, checked on random frames."""

from __future__ import annotations

import torch
from torch import Tensor

from vader_ray.types import Reward, SetMeasure

PROMPTS = ("a red circle moving left", "a blue square moving up")


def check_contract(
    reward: Reward,
    *,
    name: str = "reward",
    device: torch.device | str = "cpu",
    num_frames: int = 2,
    height: int = 32,
    width: int = 32,
) -> None:
    """Two random videos: shape, finite scores and gradients, no influence between videos or, for `frame`, between frames.

    Raises:
        ValueError: names the reward and what is wrong.
    """
    if getattr(reward, "granularity", None) not in ("frame", "clip") or not isinstance(
        getattr(reward, "unit", None), str
    ):
        raise ValueError(f"reward {name!r} must declare granularity ('frame' or 'clip') and unit (a text)")
    frames = _random_frames(num_frames, height, width).to(device).requires_grad_()
    with torch.enable_grad():
        scores = reward(frames, PROMPTS)
        _check_scores(scores, name)
        _check_gradient(scores, frames, name)
    with torch.no_grad():
        _check_separation(reward, frames, scores.detach(), name)


def check_measure(
    measure: SetMeasure,
    *,
    name: str = "measure",
    device: torch.device | str = "cpu",
    num_frames: int = 2,
    height: int = 32,
    width: int = 32,
) -> None:
    """Two random videos: shapes, finite features and scores, the same features for a video alone and in a batch.

    Raises:
        ValueError: names the measure and what is wrong.
    """
    if getattr(measure, "granularity", None) != "set" or not isinstance(getattr(measure, "unit", None), str):
        raise ValueError(f"measure {name!r} must declare granularity 'set' and unit (a text)")
    frames = _random_frames(num_frames, height, width).to(device)
    with torch.no_grad():
        features = measure.features(frames)
        if (
            not isinstance(features, Tensor)
            or features.ndim != 2
            or len(features) != 2
            or not features.isfinite().all()
        ):
            raise ValueError(
                f"measure {name!r} must give finite features of shape (batch, features) for 2 videos"
            )
        for video in range(2):
            if not _same(measure.features(frames[video : video + 1])[0], features[video]):
                raise ValueError(
                    f"measure {name!r} leaks between videos: the features of one change beside another"
                )
        _check_scores(measure.compare(features, PROMPTS), name)


def _random_frames(num_frames: int, height: int, width: int) -> Tensor:
    """A bright and a dark video, away from 0 and 1, where a clamp has no gradient."""
    noise = torch.rand(2, num_frames, 3, height, width, generator=torch.Generator().manual_seed(0))
    return 0.4 * noise + torch.tensor([0.5, 0.1]).view(2, 1, 1, 1, 1)


def _check_scores(scores: object, name: str) -> None:
    if not isinstance(scores, Tensor):
        raise ValueError(
            f"reward {name!r} returned {type(scores).__name__}; expected a tensor of shape (batch,)"
        )
    if scores.shape != (len(PROMPTS),):
        raise ValueError(
            f"reward {name!r} returned shape {tuple(scores.shape)} for 2 videos; expected (batch,), here (2,)"
        )
    if scores.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"reward {name!r} returned {scores.dtype}; expected float32 or float64 scores")
    if not scores.isfinite().all():
        raise ValueError(
            f"reward {name!r} returned {'NaN' if scores.isnan().any() else 'infinity'} for frames in [0, 1]"
        )


def _check_gradient(scores: Tensor, frames: Tensor, name: str) -> None:
    if not scores.requires_grad:
        raise ValueError(
            f"reward {name!r} has no gradient with respect to frames; keep no_grad, detach and rounding out of it"
        )
    for video in range(len(PROMPTS)):
        (gradient,) = torch.autograd.grad(scores[video], frames, retain_graph=True, allow_unused=True)
        if gradient is None or not gradient[video].any():
            raise ValueError(
                f"reward {name!r} has no gradient with respect to frames, or it is zero everywhere"
            )
        if not gradient.isfinite().all():
            raise ValueError(f"reward {name!r} has a gradient with respect to frames that is not finite")
        if gradient[1 - video].any():
            raise ValueError(
                f"reward {name!r} leaks between videos: the score of one has a gradient on the other"
            )


def _check_separation(reward: Reward, frames: Tensor, scores: Tensor, name: str) -> None:
    for video, prompt in enumerate(PROMPTS):
        alone = reward(frames[video : video + 1], [prompt])
        if not _same(alone[0], scores[video]):
            raise ValueError(
                f"reward {name!r} leaks between videos: video {video} scores {scores[video]:.6g} in a batch "
                f"and {alone[0]:.6g} alone"
            )
    if reward.granularity == "frame":
        mean = reward(frames[0, :, None], [PROMPTS[0]] * frames.shape[1]).mean()
        if not _same(mean, scores[0]):
            raise ValueError(
                f"reward {name!r} declares granularity 'frame', but a video scores {scores[0]:.6g} and its single frames "
                f"{mean:.6g} in the mean; declare 'clip'"
            )


def _same(score: Tensor, expected: Tensor) -> bool:
    # A network in bfloat16 answers batches of other sizes with other kernels: some 0.001 of a cosine.
    return torch.allclose(score.to(expected), expected, rtol=1e-2, atol=1e-3)
