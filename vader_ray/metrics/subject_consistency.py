"""VBench's subject consistency (arXiv 2311.17982): DINO features of the frames stay alike."""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Float
from torch import Tensor
from transformers import ViTConfig, ViTModel

from vader_ray.metrics.core.consistency import consistency
from vader_ray.metrics.core.network import NetworkMetric, embed
from vader_ray.rewards.base import frozen
from vader_ray.rewards.core.preprocess import IMAGENET_MEAN, IMAGENET_STD, normalise, resize
from vader_ray.rewards.core.resizing import short_side_at
from vader_ray.rewards.core.transformers_loading import check_model_type, load_folder
from vader_ray.types import Frames, Scores
from vader_ray.weights import Source, resolve_weights

WEIGHTS = "facebook/dino-vitb16"
FILES = ("config.json", "pytorch_model.bin")
RENAMED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "layernorm_before",
    "layernorm_after": "layernorm_after",
}
"""Published names of the parts of a layer, with those of transformers 5."""


class SubjectConsistencyMetric(NetworkMetric):
    """Mean cosine of each frame's DINO features with those of the frame before and of the first frame.

    A still video scores 1: watch a measure of motion beside it. The published code interpolates DINO's
    positions by a factor, transformers by the size, which differs in the third decimal on frames that are not
    square.

    Args:
        weights: hub repository or local folder in transformers' format.
    """

    unit = "cosine of DINO features, 0 to 1 alike"
    default_weights = WEIGHTS
    licence = "Apache-2.0"

    def __init__(self, *, weights: Source = WEIGHTS) -> None:
        super().__init__()
        self.network = frozen(load_network(resolve_weights(weights, *FILES)))

    def measure(self, frames: Frames) -> Scores:
        """Return one score per video."""
        return consistency(embed(self.features, frames))

    def features(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n features"]:
        """Return the class token of each image."""
        output = self.network(
            pixel_values=self.prepare(images).to(self.dtype), interpolate_pos_encoding=True
        ).last_hidden_state
        features: Tensor = output[:, 0]
        return features

    def prepare(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 3 h w"]:
        """Resize the short side (bilinear, not antialiased) and normalise, without a crop."""
        size = int(self.network.config.image_size)  # type: ignore[arg-type]
        height, width = images.shape[-2:]
        sides = short_side_at(height, width, size)
        return normalise(resize(images, *sides, "bilinear", antialias=False), IMAGENET_MEAN, IMAGENET_STD)


def load_network(folder: Path) -> ViTModel:
    """Load a vision transformer with every weight of the file but the pooling layer's."""
    check_model_type(folder, "vit")
    config = ViTConfig.from_pretrained(folder)
    config.layer_norm_eps = 1e-6  # of the original; its config in transformers' format states 1e-12
    network = ViTModel(config, add_pooling_layer=False)
    renamed = {
        f"encoder.layer.{index}.{old}.{kind}": f"layers.{index}.{new}.{kind}"
        for index in range(config.num_hidden_layers)
        for old, new in RENAMED.items()
        for kind in ("weight", "bias")
    }
    load_folder(network, folder, without=("pooler.",), renamed=renamed)
    return network
