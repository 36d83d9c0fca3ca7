"""VBench's aesthetic quality (arXiv 2311.17982): LAION's first linear head on CLIP ViT-L/14 embeddings."""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from vader_ray.metrics.core.network import ClipMetric, embed
from vader_ray.rewards.aesthetic import ENCODER
from vader_ray.rewards.base import frozen
from vader_ray.rewards.core.linear_head import check_fits
from vader_ray.rewards.core.transformers_loading import TRANSFORMERS_FILES
from vader_ray.types import Frames, Scores
from vader_ray.weights import Source, load_strictly, read_state_dict, resolve_url, resolve_weights

URL = "https://github.com/LAION-AI/aesthetic-predictor/raw/main/sa_0_4_vit_l_14_linear.pth"


class AestheticQualityMetric(ClipMetric):
    """Mean over frames of the rating of the normalised image embedding, divided by 10.

    Another head than that of the reward `aesthetic`.

    Args:
        encoder: CLIP of transformers, whole or the vision tower with its projection.
        head: local copy of ``sa_0_4_vit_l_14_linear.pth``; by default LAION's file is downloaded.
    """

    unit = "aesthetic rating, about 0.1 to 1"
    default_weights = f"{ENCODER}, LAION-AI/aesthetic-predictor sa_0_4_vit_l_14_linear"
    licence = "MIT; encoder: not stated"

    def __init__(self, *, encoder: Source = ENCODER, head: Source | None = None) -> None:
        folder = resolve_weights(encoder, *TRANSFORMERS_FILES)
        path = resolve_weights(head) if head else resolve_url(URL, "head")
        super().__init__(folder)
        self.head = frozen(load_head(path))
        check_fits(self.head.in_features, path, self.encoder.config.projection_dim, folder)

    def measure(self, frames: Frames) -> Scores:
        """Return one score per video."""
        return embed(self.ratings, frames).mean(dim=(1, 2)) / 10

    def ratings(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 1"]:
        """Return the rating of each image."""
        ratings: Tensor = self.head(functional.normalize(self.features(images), dim=-1))
        return ratings


def load_head(path: Path) -> nn.Linear:
    """Load LAION's linear layer; its width is read from the file."""
    state = read_state_dict(path)
    weight = state.get("weight")
    head = nn.Linear(weight.shape[1] if weight is not None and weight.ndim == 2 else 768, 1)
    load_strictly(head, state, path)
    return head
