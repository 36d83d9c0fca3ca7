"""Rewards with a network: frozen, in eval mode for good, computing in their own dtype.

In float16 the gradient of a score with respect to a pixel falls below the smallest number there is, so the backward of the
network runs on gradients that are `GRADIENT_SCALE` times larger and shrinks them again at the float32 frames.

Measured deviation from float32 on networks of two or three layers, of the score as a share of its range (200 for 100 × cosine,
2 for a cosine, 9 for the aesthetic rating, 1 for the probability behind a soft detection) and of the gradient as a share of its
norm (``pytest tests/rewards/test_frame_rewards.py -k half_precision -s``); deep networks deviate more:

================  ==============  ==============
reward            bfloat16        float16
================  ==============  ==============
pickscore         0.10 %, 1.4 %   0.01 %, 0.2 %
clip_score        0.10 %, 1.4 %   0.01 %, 0.2 %
hps               0.05 %, 1.5 %   0.01 %, 0.2 %
aesthetic         0.11 %, 2.1 %   0.01 %, 0.2 %
object_detection  0.02 %, 5.3 %   0.01 %, 1.9 %
================  ==============  ==============
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vader_ray.types import Frames, Granularity, Scores

Network = TypeVar("Network", bound=nn.Module)

GRADIENT_SCALE = 2.0**10
"""A power of two, so that multiplying and dividing lose nothing. Gradients below 63 at the output of the network still fit."""


class NetworkReward(nn.Module):
    """A reward whose networks never train. A subclass sets them in ``__init__``, each through `frozen`, and says `score`."""

    granularity: Granularity
    unit: str
    default_weights: str
    """Hub repositories of the weights that it takes by default, comma-separated."""
    licence: str
    """Licence of those weights where known, else ``not stated``."""

    def __init__(self) -> None:
        super().__init__()
        self.eval()

    def train(self, mode: bool = True) -> NetworkReward:
        """Stays in eval mode, whatever the module it became a part of does."""
        return super().train(False)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of its weights."""
        return next(self.parameters()).dtype

    def region(self, height: int, width: int) -> tuple[slice, slice]:
        """The rows and columns of a frame outside which pixels have exactly no influence."""
        return slice(0, height), slice(0, width)

    def forward(self, frames: Frames, prompts: Sequence[str], /) -> Scores:
        """One score per video, at least float32."""
        assert len(prompts) == len(frames), f"{len(prompts)} prompts for {len(frames)} videos"
        scale = GRADIENT_SCALE if self.dtype == torch.float16 else 1.0
        scores = self.score(scale_gradient(self.widened(frames), 1 / scale), prompts)
        return scale_gradient(scores.to(torch.promote_types(scores.dtype, torch.float32)), scale)

    @abstractmethod
    def score(self, frames: Frames, prompts: Sequence[str], /) -> Scores:
        """One score per video, of frames at the precision of preprocessing."""

    def widened(self, frames: Frames) -> Frames:
        """The frames at the precision of preprocessing: theirs or the network's, and at least float32."""
        return frames.to(torch.promote_types(torch.promote_types(frames.dtype, self.dtype), torch.float32))


class FrameReward(NetworkReward):
    """The mean over a video's frames of a score of single images."""

    granularity: Granularity = "frame"

    def score(self, frames: Frames, prompts: Sequence[str], /) -> Scores:
        """The mean over the frames of each video."""
        num_frames = frames.shape[1]
        scores = self.score_images(
            frames.flatten(0, 1), [prompt for prompt in prompts for _ in range(num_frames)]
        )
        return scores.to(torch.promote_types(scores.dtype, torch.float32)).view(-1, num_frames).mean(dim=1)

    @abstractmethod
    def score_images(
        self, images: Float[Tensor, "n 3 height width"], prompts: Sequence[str], /
    ) -> Float[Tensor, " n"]:
        """One score per image, image ``i`` against ``prompts[i]``."""


def frozen(network: Network) -> Network:
    """The same network, in eval mode and without gradients of its own."""
    return network.requires_grad_(False).eval()


def scale_gradient(tensor: Tensor, factor: float) -> Tensor:
    """The same tensor; in the backward pass its gradient is multiplied by ``factor``."""
    return cast(Tensor, _ScaleGradient.apply(tensor, factor)) if factor != 1.0 else tensor


class _ScaleGradient(torch.autograd.Function):
    """Identity whose derivative is ``factor``."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None
