"""Base classes of metrics with networks, which compute without a gradient."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from vader_ray.rewards.aesthetic import load_encoder
from vader_ray.rewards.base import FrozenNetworks, frozen
from vader_ray.rewards.core.preprocess import crop, normalise
from vader_ray.rewards.core.transformers_loading import image_statistics
from vader_ray.types import Frames, Scores

IMAGES_AT_ONCE = 16
"""Images of one pass of an image network."""


class NetworkMetric(FrozenNetworks):
    """Score of each video by networks that are never trained; a subclass implements `measure`."""

    unit: str
    """Unit and range of the scores, for reports."""
    higher_is_better = True
    parts: tuple[str, ...] = ()

    @torch.no_grad()
    def forward(self, frames: Frames, prompts: Sequence[str], /) -> Scores | Mapping[str, Scores]:
        """Return one score per video, or one per video and part."""
        return self.measure(self.widened(frames))

    @abstractmethod
    def measure(self, frames: Frames) -> Scores | Mapping[str, Scores]:
        """Return one score per video, or one per video and part; frames are float32 or float64."""


class ClipMetric(NetworkMetric):
    """Base class of VBench's metrics on CLIP's image embeddings.

    Args:
        folder: CLIP in transformers' format.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.encoder = frozen(load_encoder(folder))
        self.mean, self.std = image_statistics(folder)

    def features(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n features"]:
        """Return the projected embedding of each image."""
        features: Tensor = self.encoder(pixel_values=self.prepare(images).to(self.dtype)).image_embeds
        return features

    def prepare(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 3 size size"]:
        """Resize the short side (bicubic, not antialiased), crop the centre and normalise, as VBench does."""
        size: int = self.encoder.config.image_size  # type: ignore[assignment]
        return normalise(crop(images, size, "bicubic", antialias=False), self.mean, self.std)


def embed(
    images: Callable[[Float[Tensor, "n 3 height width"]], Float[Tensor, "n features"]], frames: Frames
) -> Float[Tensor, "batch frames features"]:
    """Return the embedding of each frame, a few frames at a time, in the dtype of the frames."""
    parts = [images(chunk).to(frames.dtype) for chunk in frames.flatten(0, 1).split(IMAGES_AT_ONCE)]
    embeddings: Tensor = torch.cat(parts).unflatten(0, frames.shape[:2])
    return embeddings
