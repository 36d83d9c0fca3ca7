"""CLIP diversity: the distance between the videos of one prompt in CLIP's image space."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from vader_ray.metrics.base import Features
from vader_ray.metrics.core.statistics import mean_to_others
from vader_ray.rewards.aesthetic import load_encoder
from vader_ray.rewards.base import FrozenNetworks, frozen
from vader_ray.rewards.core.preprocess import crop, normalise
from vader_ray.rewards.core.transformers_loading import image_statistics
from vader_ray.types import Frames, Scores
from vader_ray.weights import Source, resolve_weights

WEIGHTS = "openai/clip-vit-large-patch14"
FILES = ("config.json", "preprocessor_config.json", "model.safetensors")


class ClipDiversityMetric(FrozenNetworks):
    """Mean cosine distance of a video to the others of its prompt, or to all others if its prompt has none.

    A video's features are the mean over its frames of CLIP's normalised image embedding, preprocessed as CLIP
    does (short side bicubic, centre crop). Scores do not depend on batches and workers. The distance falls to
    0 where a model has collapsed to one video per prompt.

    Args:
        weights: a transformers CLIP (folder or hub repository), or a folder that holds one as
            ``image_encoder/``.
    """

    unit = "cosine distance to the videos of the same prompt, 0 alike to 2"
    higher_is_better = True
    default_weights = WEIGHTS
    licence = "not stated"

    def __init__(self, *, weights: Source = WEIGHTS) -> None:
        super().__init__()
        folder = resolve_weights(weights, *FILES)
        folder = folder / "image_encoder" if (folder / "image_encoder").is_dir() else folder
        self.encoder = frozen(load_encoder(folder))
        self.mean, self.std = image_statistics(folder)

    @torch.no_grad()
    def features(self, frames: Frames, /) -> Features:
        """Return the mean embedding of each video's frames."""
        wide = self.widened(frames)
        pixels = self.prepare(wide.flatten(0, 1)).to(self.dtype)
        embeddings = self.encoder(pixel_values=pixels).image_embeds.to(wide.dtype)
        embeddings = functional.normalize(embeddings, dim=-1)
        means: Tensor = embeddings.unflatten(0, frames.shape[:2]).mean(dim=1)
        return means

    def prepare(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 3 size size"]:
        """Resize, crop and normalise images to the network's input."""
        size: int = self.encoder.config.image_size  # type: ignore[assignment]
        return normalise(crop(images, size, "bicubic"), self.mean, self.std)

    def compare(self, features: Features, prompts: Sequence[str], /) -> Scores:
        """Return the mean cosine distance of each video to the others; 0 for a single video."""
        unit = functional.normalize(features, dim=-1)
        return mean_to_others(1 - unit @ unit.T, prompts)
