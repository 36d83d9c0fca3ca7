"""Aesthetic predictor v2.5: a linear head on SigLIP image embeddings, rated by people.

Written from the sizes and names of the published weights alone. The authors' code is under the AGPL-3.0, and
so, as nothing else is stated, is their head file: neither is part of this package; give a copy of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from transformers import SiglipVisionConfig, SiglipVisionModel

from vader_ray.errors import UserError
from vader_ray.rewards.base import FrameReward, frozen
from vader_ray.rewards.core.linear_head import LinearHead, check_fits, load_linear_head
from vader_ray.rewards.core.preprocess import normalise
from vader_ray.rewards.core.resizing import Resizing, whole
from vader_ray.rewards.core.transformers_loading import (
    TRANSFORMERS_FILES,
    check_model_type,
    image_statistics,
    load_folder,
)
from vader_ray.weights import Source, read_state_dict, resolve_weights, without_weights

ENCODER, REPOSITORY = "google/siglip-so400m-patch14-384", "discus0434/aesthetic-predictor-v2-5"
HEAD_FILE = "aesthetic_predictor_v2_5.pth"
HEAD_LAYERS = (0, 2, 4, 6, 8)
"""Indices of the linear layers in the published file; the others are dropouts."""
HEAD_SIZES = (1152, 1024, 128, 64, 16, 1)
"""Numbers of features of the published head, from input to output."""
HEAD, TOWER = "scoring_head.", "vision_model."
"""Beginnings of the names of the head's weights, and of those of the image tower in published files."""
OTHER_TOWER = ("text_model.", "logit_")
"""Beginnings of the names of weights of a whole SigLIP that are not loaded."""


class AestheticV25Reward(FrameReward):
    """The mean over frames of the head's rating of the normalised image embedding; ignores the prompts.

    Behind the normalisation there are only linear layers, so that a trained model finds unnatural pictures
    with high ratings easily: give a ``target``.

    Args:
        head: local copy of the authors' ``aesthetic_predictor_v2_5.pth`` (AGPL-3.0).
        encoder: SigLIP of transformers, whole or the image tower.
    """

    unit = "aesthetic rating, about 1 to 10, good from 5.5"
    default_weights = f"{ENCODER}, {REPOSITORY} (not downloaded)"
    licence = "Apache-2.0; head: AGPL-3.0"

    def __init__(self, *, head: Source | None = None, encoder: Source = ENCODER) -> None:
        super().__init__()
        folder = resolve_weights(encoder, *TRANSFORMERS_FILES)
        self.encoder = frozen(load_encoder(folder))
        self.head = frozen(load_head(head))
        check_fits(self.head.num_features, str(head), self.encoder.config.hidden_size, folder)
        self.image_mean, self.image_std = image_statistics(folder)
        self.image_size: int = self.encoder.config.image_size  # type: ignore[assignment]

    def resizing(self, height: int, width: int) -> Resizing:
        """Return a square of the network's image size."""
        return whole(self.image_size, self.image_size, "bicubic")

    def score_images(
        self, images: Float[Tensor, "n 3 height width"], prompts: Sequence[str], /
    ) -> Float[Tensor, " n"]:
        """Return the rating of each image."""
        embeddings = self.encoder(pixel_values=self.prepare(images).to(self.dtype)).pooler_output
        ratings: Tensor = self.head(functional.normalize(embeddings, dim=-1))
        return ratings[:, 0]

    def prepare(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 3 size size"]:
        """Return the preprocessed images that the network takes: squashed to a square (bicubic)."""
        return normalise(self.seen(images), self.image_mean, self.image_std)


def load_head(head: str | None) -> LinearHead:
    """Load the head from the authors' file; without weights, the published sizes.

    Raises:
        UserError: no file is given, or it is missing, truncated or of another network.
    """
    if head is None and without_weights():
        return LinearHead(HEAD_SIZES, HEAD_LAYERS)
    if head is None:
        raise UserError(
            f"the head is not part of this package (AGPL-3.0); get {HEAD_FILE} from github.com/{REPOSITORY} "
            "and give its path as the option head"
        )
    path = resolve_weights(head)
    state = {
        name.replace(HEAD, "layers.") if name.startswith(HEAD) else name: value
        for name, value in read_state_dict(path).items()
    }
    return load_linear_head(state, path, HEAD_SIZES, HEAD_LAYERS)


def load_encoder(folder: Path) -> SiglipVisionModel:
    """Load a SigLIP's image tower; the text tower of a whole SigLIP is left out."""
    check_model_type(folder, "siglip", "siglip_vision_model")
    network = SiglipVisionModel(SiglipVisionConfig.from_pretrained(folder))
    renamed = {f"{TOWER}{name}": name for name in network.state_dict()}
    load_folder(network, folder, without=OTHER_TOWER, renamed=renamed)
    return network
