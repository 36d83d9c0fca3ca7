"""Base classes of rewards with a network; the public extension points.

A reward is any object with attributes ``granularity`` and ``unit`` that is called with frames and prompts
and returns one score per video (`vader_ray.types.Reward`); ``brightness.py`` is the shortest example. For
a reward with a network, subclass

- `FrameReward` if the score of a video is the mean of scores of its single frames: implement
  `FrameReward.score_images`;
- `NetworkReward` otherwise: implement `NetworkReward.score`.

Load the networks in ``__init__``, each through `frozen`. The keyword arguments of ``__init__`` are the
reward's options in a recipe, validated by their annotations. The base class keeps the networks frozen and
in eval mode, computes in the recipe's precision and returns float32 scores::

    class ContrastReward(FrameReward):
        unit = "rating, 0 to 10"
        default_weights = "my-lab/contrast"
        licence = "MIT"

        def __init__(self, *, weights: Source = default_weights) -> None:
            super().__init__()
            self.network = frozen(load_network(resolve_weights(weights, "model.safetensors")))

        def resizing(self, height, width):
            return whole(224, 224)

        def score_images(self, images, prompts, /):
            pixels = normalise(self.seen(images), CLIP_MEAN, CLIP_STD)
            return self.network(pixels.to(self.dtype))[:, 0]

In float16 the gradient of a score with respect to a pixel is smaller than the smallest float16 number. So
the network's backward pass runs on gradients multiplied by `GRADIENT_SCALE`, which are divided again at
the float32 frames.

Measured deviation of half precision from float32 on networks of two or three layers: of the score in
percent of its range (200 for 100 × cosine, 2 for a cosine, 9 for the aesthetic rating, 1 for the
probability of a soft detection), and of the gradient in percent of its norm (``pytest
tests/rewards/test_frame_rewards.py -k half_precision -s``); deep networks deviate more:

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
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vader_ray.gradients import scale_gradient
from vader_ray.rewards.core.resizing import Resizing, whole
from vader_ray.types import Frames, Granularity, Scores

Network = TypeVar("Network", bound=nn.Module)

GRADIENT_SCALE = 2.0**10
"""A power of two, so that multiplication and division are exact. Gradients of up to 63 at the network's
output do not overflow."""


class FrozenNetworks(nn.Module):
    """Base class of rewards and metrics whose networks are never trained."""

    default_weights: str
    """Sources of the default weights, comma-separated."""
    licence: str
    """Licence of the default weights, or ``not stated``."""

    def __init__(self) -> None:
        super().__init__()
        self.eval()

    def train(self, mode: bool = True) -> FrozenNetworks:
        """Stay in eval mode, also as part of a module that is switched to training mode."""
        return super().train(False)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the networks' weights."""
        return next(self.parameters()).dtype

    def widened(self, frames: Frames) -> Frames:
        """Return the frames in the dtype of preprocessing.

        It is that of the frames or of the network, whichever is wider, and float32 at least.
        """
        return frames.to(torch.promote_types(torch.promote_types(frames.dtype, self.dtype), torch.float32))


class NetworkReward(FrozenNetworks):
    """Base class of rewards with networks; a subclass loads them in ``__init__`` and implements `score`."""

    granularity: Granularity
    """``clip`` if a score needs all frames of a video at once, ``frame`` if it is the mean of scores of
    single frames."""
    unit: str
    """Unit and range of the scores, for people."""

    def resizing(self, height: int, width: int) -> Resizing:
        """Return how frames of this size are resized and which part of the result is used; by default all,
        as it is.

        `seen` does it. A remote reward is sent no more than that, and pixels outside must have a gradient of
        exactly 0.
        """
        return whole(height, width)

    def seen(self, frames: Float[Tensor, "*n height width"]) -> Float[Tensor, "*n rows columns"]:
        """Return what the reward sees of the frames, by `resizing`."""
        height, width = frames.shape[-2:]
        return self.resizing(height, width).seen(frames)

    def forward(self, frames: Frames, prompts: Sequence[str], /) -> Scores:
        """Return one score per video, float32 or float64.

        Args:
            frames: ``batch frames 3 height width`` in [0, 1].
            prompts: one per video.
        """
        assert len(prompts) == len(frames), f"{len(prompts)} prompts for {len(frames)} videos"
        scale = GRADIENT_SCALE if self.dtype == torch.float16 else 1.0
        scores = self.score(scale_gradient(self.widened(frames), 1 / scale), prompts)
        return scale_gradient(scores.to(torch.promote_types(scores.dtype, torch.float32)), scale)

    @abstractmethod
    def score(self, frames: Frames, prompts: Sequence[str], /) -> Scores:
        """Return one score per video, differentiable in the frames.

        Args:
            frames: ``batch frames 3 height width`` in [0, 1], float32 or float64; cast to `dtype` after
                preprocessing.
            prompts: one per video.
        """


class FrameReward(NetworkReward):
    """Base class of rewards that score single images; a video's score is the mean over its frames."""

    granularity: Granularity = "frame"

    def score(self, frames: Frames, prompts: Sequence[str], /) -> Scores:
        """Return the mean score of the frames of each video."""
        num_frames = frames.shape[1]
        scores = self.score_images(
            frames.flatten(0, 1), [prompt for prompt in prompts for _ in range(num_frames)]
        )
        return scores.to(torch.promote_types(scores.dtype, torch.float32)).view(-1, num_frames).mean(dim=1)

    @abstractmethod
    def score_images(
        self, images: Float[Tensor, "n 3 height width"], prompts: Sequence[str], /
    ) -> Float[Tensor, " n"]:
        """Return one score per image, differentiable in the images.

        Args:
            images: ``n 3 height width`` in [0, 1], float32 or float64; cast to `dtype` after preprocessing.
            prompts: one per image.
        """


def frozen(network: Network) -> Network:
    """Return the same network in eval mode, its parameters without gradient."""
    return network.requires_grad_(False).eval()
