"""VBench's background consistency (arXiv 2311.17982): CLIP features of the frames stay alike."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from vader_ray.metrics.core.consistency import consistency
from vader_ray.metrics.core.network import NetworkMetric, embed
from vader_ray.rewards.aesthetic import load_encoder
from vader_ray.rewards.base import frozen
from vader_ray.rewards.core.preprocess import crop, normalise
from vader_ray.rewards.core.transformers_loading import TRANSFORMERS_FILES, image_statistics
from vader_ray.types import Frames, Scores
from vader_ray.weights import Source, resolve_weights

WEIGHTS = "openai/clip-vit-base-patch32"


class BackgroundConsistencyMetric(NetworkMetric):
    """Mean cosine of each frame's CLIP features with those of the frame before and of the first frame.

    A still video scores 1: watch a measure of motion beside it.

    Args:
        weights: hub repository or local folder in transformers' format.
    """

    unit = "cosine of CLIP features, 0 to 1 alike"
    default_weights = WEIGHTS
    licence = "MIT"

    def __init__(self, *, weights: Source = WEIGHTS) -> None:
        super().__init__()
        folder = resolve_weights(weights, *TRANSFORMERS_FILES)
        self.encoder = frozen(load_encoder(folder))
        self.mean, self.std = image_statistics(folder)

    def measure(self, frames: Frames) -> Scores:
        """Return one score per video."""
        return consistency(embed(self.features, frames))

    def features(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n features"]:
        """Return the projected embedding of each image."""
        features: Tensor = self.encoder(pixel_values=self.prepare(images).to(self.dtype)).image_embeds
        return features

    def prepare(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 3 size size"]:
        """Resize the short side (bicubic, not antialiased), crop the centre and normalise, as VBench does."""
        size: int = self.encoder.config.image_size  # type: ignore[assignment]
        return normalise(crop(images, size, "bicubic", antialias=False), self.mean, self.std)
