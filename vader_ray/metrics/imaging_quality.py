"""VBench's imaging quality (arXiv 2311.17982): MUSIQ's rating of the frames, trained on photographs."""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from vader_ray.metrics.core.musiq import BLOCKS, WIDTH, Musiq
from vader_ray.metrics.core.network import NetworkMetric, embed
from vader_ray.rewards.base import frozen
from vader_ray.rewards.core.preprocess import resize
from vader_ray.types import Frames, Scores
from vader_ray.weights import Source, load_strictly, read_state_dict, resolve_url, resolve_weights

URL = "https://github.com/chaofengc/IQA-PyTorch/releases/download/v0.1-weights/musiq_spaq_ckpt-358bb6af.pth"
LONGEST = 512
"""Long side to which larger frames are reduced, in pixels."""


class ImagingQualityMetric(NetworkMetric):
    """Mean over frames of MUSIQ's rating of noise, blur and exposure, divided by 100.

    Args:
        weights: local copy of ``musiq_spaq_ckpt-358bb6af.pth``; by default it is downloaded.
    """

    unit = "MUSIQ rating, 0 to 1"
    default_weights = "chaofengc/IQA-PyTorch musiq_spaq_ckpt-358bb6af"
    licence = "Apache-2.0"

    def __init__(self, *, weights: Source | None = None) -> None:
        super().__init__()
        self.network = frozen(load_network(resolve_weights(weights) if weights else resolve_url(URL)))

    def measure(self, frames: Frames) -> Scores:
        """Return one score per video."""
        return embed(self.ratings, frames).mean(dim=(1, 2)) / 100

    def ratings(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 1"]:
        """Return the rating of each image."""
        ratings: Tensor = self.network(prepared(images).to(self.dtype))
        return ratings[:, None]


def prepared(images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 3 h w"]:
    """Reduce images to a long side of at most 512 pixels (bilinear, not antialiased), as VBench does."""
    height, width = images.shape[-2:]
    if max(height, width) <= LONGEST:
        return images
    scale = LONGEST / max(height, width)
    return resize(images, int(scale * height), int(scale * width), "bilinear", antialias=False)


def load_network(path: Path) -> Musiq:
    """Load MUSIQ; its width and its number of blocks are read from the file."""
    state = read_state_dict(path)
    head = state.get("head.weight")
    blocks = len([name for name in state if name.endswith(".attention.query.weight")])
    width = head.shape[-1] if head is not None and head.ndim == 2 else WIDTH
    network = Musiq(width if width % 6 == 0 else WIDTH, blocks or BLOCKS)
    load_strictly(network, state, path)
    return network
