"""Rewards with a network: frozen, in eval mode for good, computing in their own dtype."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vader_ray.types import Frames, Granularity, Scores

Network = TypeVar("Network", bound=nn.Module)


class NetworkReward(nn.Module):
    """A reward whose networks never train. A subclass sets them in ``__init__``, each through `frozen`."""

    granularity: Granularity
    unit: str

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

    def widened(self, frames: Frames) -> Frames:
        """The frames at the precision of preprocessing: theirs or the network's, and at least float32."""
        return frames.to(torch.promote_types(torch.promote_types(frames.dtype, self.dtype), torch.float32))


class FrameReward(NetworkReward):
    """The mean over a video's frames of a score of single images."""

    granularity: Granularity = "frame"

    def forward(self, frames: Frames, prompts: Sequence[str], /) -> Scores:
        """One score per video, at least float32."""
        assert len(prompts) == len(frames), f"{len(prompts)} prompts for {len(frames)} videos"
        num_frames = frames.shape[1]
        scores = self.score_images(self.widened(frames).flatten(0, 1), [prompt for prompt in prompts for _ in range(num_frames)])
        return scores.to(torch.promote_types(scores.dtype, torch.float32)).view(-1, num_frames).mean(dim=1)

    @abstractmethod
    def score_images(self, images: Float[Tensor, "n 3 height width"], prompts: Sequence[str], /) -> Float[Tensor, " n"]:
        """One score per image, image ``i`` against ``prompts[i]``."""


def frozen(network: Network) -> Network:
    """The same network, in eval mode and without gradients of its own."""
    return network.requires_grad_(False).eval()
