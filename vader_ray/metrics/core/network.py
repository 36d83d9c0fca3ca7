"""Base class of metrics with a network, which is frozen and in eval mode, and computes without a gradient."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vader_ray.types import Frames, Scores

IMAGES_AT_ONCE = 16
"""Images of one pass of an image network."""


class NetworkMetric(nn.Module):
    """Score of each video by networks that are never trained; a subclass implements `measure`."""

    unit: str
    """Unit and range of the scores, for reports."""
    higher_is_better = True
    parts: tuple[str, ...] = ()
    default_weights: str
    """Sources of the default weights, comma-separated."""
    licence: str
    """Licence of the default weights, or ``not stated``."""

    def __init__(self) -> None:
        super().__init__()
        self.eval()

    def train(self, mode: bool = True) -> NetworkMetric:
        """Stay in eval mode when a module that contains this one goes to training mode."""
        return super().train(False)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the networks' weights."""
        return next(self.parameters()).dtype

    @torch.no_grad()
    def forward(self, frames: Frames, prompts: Sequence[str], /) -> Scores | Mapping[str, Scores]:
        """Return one score per video, or one per video and part."""
        wide = torch.promote_types(torch.promote_types(frames.dtype, self.dtype), torch.float32)
        return self.measure(frames.to(wide))

    @abstractmethod
    def measure(self, frames: Frames) -> Scores | Mapping[str, Scores]:
        """Return one score per video, or one per video and part; frames are float32 or float64."""


def embed(
    images: Callable[[Float[Tensor, "n 3 height width"]], Float[Tensor, "n features"]], frames: Frames
) -> Float[Tensor, "batch frames features"]:
    """Return the embedding of each frame, a few frames at a time, in the dtype of the frames."""
    parts = [images(chunk).to(frames.dtype) for chunk in frames.flatten(0, 1).split(IMAGES_AT_ONCE)]
    embeddings: Tensor = torch.cat(parts).unflatten(0, frames.shape[:2])
    return embeddings
