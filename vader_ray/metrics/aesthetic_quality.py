"""VBench's aesthetic quality (arXiv 2311.17982): LAION's first linear head on CLIP ViT-L/14 embeddings."""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from vader_ray.errors import UserError
from vader_ray.metrics.core.network import NetworkMetric, embed
from vader_ray.rewards.aesthetic import ENCODER, load_encoder
from vader_ray.rewards.base import frozen
from vader_ray.rewards.core.preprocess import crop, normalise
from vader_ray.rewards.core.transformers_loading import TRANSFORMERS_FILES, image_statistics
from vader_ray.types import Frames, Scores
from vader_ray.weights import Source, load_strictly, read_state_dict, resolve_url, resolve_weights

URL = "https://github.com/LAION-AI/aesthetic-predictor/raw/main/sa_0_4_vit_l_14_linear.pth"


class AestheticQualityMetric(NetworkMetric):
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
        super().__init__()
        folder = resolve_weights(encoder, *TRANSFORMERS_FILES)
        path = resolve_weights(head) if head else resolve_url(URL, "head")
        self.encoder = frozen(load_encoder(folder))
        self.head = frozen(load_head(path))
        if self.head.in_features != self.encoder.config.projection_dim:
            raise UserError(
                f"the head {path} takes {self.head.in_features} features but the encoder {folder} gives "
                f"{self.encoder.config.projection_dim}; give a head that was trained on this encoder"
            )
        self.mean, self.std = image_statistics(folder)

    def measure(self, frames: Frames) -> Scores:
        """Return one score per video."""
        return embed(self.ratings, frames).mean(dim=(1, 2)) / 10

    def ratings(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 1"]:
        """Return the rating of each image."""
        features = self.encoder(pixel_values=self.prepare(images).to(self.dtype)).image_embeds
        ratings: Tensor = self.head(functional.normalize(features, dim=-1))
        return ratings

    def prepare(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 3 size size"]:
        """Resize the short side (bicubic, not antialiased), crop the centre and normalise, as VBench does."""
        size: int = self.encoder.config.image_size  # type: ignore[assignment]
        return normalise(crop(images, size, "bicubic", antialias=False), self.mean, self.std)


def load_head(path: Path) -> nn.Linear:
    """Load LAION's linear layer; its width is read from the file."""
    state = read_state_dict(path)
    weight = state.get("weight")
    head = nn.Linear(weight.shape[1] if weight is not None and weight.ndim == 2 else 768, 1)
    load_strictly(head, state, path)
    return head
