"""Diversity: how far the videos of one prompt lie apart in CLIP's image space. Evaluated, never trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from vader_ray.rewards.aesthetic import load_encoder
from vader_ray.rewards.base import frozen
from vader_ray.rewards.core.preprocess import crop, normalise
from vader_ray.rewards.core.transformers_loading import image_statistics
from vader_ray.types import Features, Frames, Scores
from vader_ray.weights import Source, resolve_weights

WEIGHTS = "openai/clip-vit-large-patch14"
FILES = ("config.json", "preprocessor_config.json", "model.safetensors")


class Reward(nn.Module):
    """The mean cosine distance of a video to the others of its prompt, or to all others where its prompt has no other.

    A video's features are the mean over its frames of CLIP's normalised image embedding, preprocessed as CLIP does (short side
    bicubic, centre crop). The same videos give the same scores whatever the batches and workers they were made in. It falls to 0
    where a model has collapsed to one video per prompt.

    Args:
        weights: a transformers CLIP (folder or hub repository), or a folder that holds one as ``image_encoder/``.
    """

    granularity: Literal["set"] = "set"
    unit = "mean cosine distance to the videos of the same prompt (of all prompts where it has one), 0 alike to 2"
    default_weights = WEIGHTS
    licence = "not stated"

    def __init__(self, *, weights: Source = WEIGHTS) -> None:
        super().__init__()
        folder = resolve_weights(weights, *FILES)
        folder = folder / "image_encoder" if (folder / "image_encoder").is_dir() else folder
        self.encoder = frozen(load_encoder(folder))
        self.mean, self.std = image_statistics(folder)
        self.eval()

    def train(self, mode: bool = True) -> Reward:
        """Stays in eval mode, whatever the module it became a part of does."""
        return super().train(False)

    @torch.no_grad()
    def features(self, frames: Frames, /) -> Features:
        """The mean embedding of each video's frames."""
        dtype = next(self.encoder.parameters()).dtype
        wide = torch.promote_types(torch.promote_types(frames.dtype, dtype), torch.float32)
        pixels = self.prepare(frames.flatten(0, 1).to(wide)).to(dtype)
        embeddings = functional.normalize(self.encoder(pixel_values=pixels).image_embeds.to(wide), dim=-1)
        means: Tensor = embeddings.unflatten(0, frames.shape[:2]).mean(dim=1)
        return means

    def prepare(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 3 size size"]:
        """What the network sees."""
        size: int = self.encoder.config.image_size  # type: ignore[assignment]
        return normalise(crop(images, size, "bicubic"), self.mean, self.std)

    def compare(self, features: Features, prompts: Sequence[str], /) -> Scores:
        """One score per video of the set.

        Raises:
            ValueError: a single video has nothing to differ from.
        """
        if len(prompts) < 2:
            raise ValueError("diversity compares videos and got 1; set evaluation.num_videos to at least 2")
        unit = functional.normalize(features, dim=-1)
        return mean_to_others(1 - unit @ unit.T, prompts)


def mean_to_others(distances: Float[Tensor, "videos videos"], prompts: Sequence[str]) -> Scores:
    """The mean distance of each video to the others of its prompt, or to all others where its prompt has no other."""
    others = ~torch.eye(len(prompts), dtype=torch.bool, device=distances.device)
    alike = (
        torch.tensor([[one == other for other in prompts] for one in prompts], device=distances.device)
        & others
    )
    chosen = torch.where(alike.any(dim=1, keepdim=True), alike, others)
    return (distances * chosen).sum(dim=1) / chosen.sum(dim=1)
