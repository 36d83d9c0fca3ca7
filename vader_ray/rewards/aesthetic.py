"""LAION aesthetic score: a linear head on CLIP ViT-L/14 image embeddings.

Source: christophschuhmann/improved-aesthetic-predictor.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from vader_ray.rewards.base import FrameReward, frozen
from vader_ray.rewards.core.linear_head import LinearHead, check_fits, load_linear_head
from vader_ray.rewards.core.preprocess import Preprocessing, normalise
from vader_ray.rewards.core.resizing import Resizing, centre_square, whole
from vader_ray.rewards.core.transformers_loading import (
    TRANSFORMERS_FILES,
    check_model_type,
    image_statistics,
    load_folder,
)
from vader_ray.weights import Source, only_file, read_state_dict, resolve_weights

ENCODER, HEAD = "openai/clip-vit-large-patch14", "camenduru/improved-aesthetic-predictor"
HEAD_FILE = "sac+logos+ava1-l14-linearMSE.pth"
HEAD_SIZES = (768, 1024, 128, 64, 16, 1)
"""Numbers of features of the published head, from input to output."""
OTHER_TOWER = ("text_model.", "text_projection.", "logit_scale")
"""Beginnings of the names of weights of a whole CLIP that are not loaded."""


class AestheticReward(FrameReward):
    """The mean over frames of the head's rating of the normalised image embedding; ignores the prompts.

    Args:
        weights: folder with ``image_encoder/`` and one ``*.pth`` head, instead of the published pair.
        encoder: CLIP of transformers, whole or the vision tower with its projection; replaces that of
            ``weights``.
        head: local file, or hub repository with the published head; replaces that of ``weights``.
        preprocessing: ``published`` crops the centre (short side bicubic); ``vader`` resizes to a square
            (bilinear).
    """

    unit = "LAION aesthetic, about 1 to 10"
    default_weights = f"{ENCODER}, {HEAD}"
    licence = "not stated"

    def __init__(
        self,
        *,
        weights: Source | None = None,
        encoder: Source | None = None,
        head: Source | None = None,
        preprocessing: Preprocessing = "published",
    ) -> None:
        super().__init__()
        if weights is not None:
            folder = resolve_weights(weights)
            encoder, head = encoder or str(folder / "image_encoder"), head or str(only_file(folder, "*.pth"))
        encoder_folder, head_file = (
            resolve_weights(encoder or ENCODER, *TRANSFORMERS_FILES),
            resolve_weights(head or HEAD, HEAD_FILE),
        )
        self.encoder = frozen(load_encoder(encoder_folder))
        self.head = frozen(load_head(head_file if head_file.is_file() else head_file / HEAD_FILE))
        check_fits(self.head.num_features, head_file, self.encoder.config.projection_dim, encoder_folder)
        self.image_mean, self.image_std = image_statistics(encoder_folder)
        self.image_size: int = self.encoder.config.image_size  # type: ignore[assignment]
        self.preprocessing = preprocessing

    def resizing(self, height: int, width: int) -> Resizing:
        """Return the centre square of frames with the short side at the network's image size, or a square
        with ``preprocessing=vader``."""
        if self.preprocessing == "published":
            return centre_square(height, width, self.image_size, "bicubic")
        return whole(self.image_size, self.image_size)

    def score_images(
        self, images: Float[Tensor, "n 3 height width"], prompts: Sequence[str], /
    ) -> Float[Tensor, " n"]:
        """Return the rating of each image."""
        features = self.encoder(pixel_values=self.prepare(images).to(self.dtype)).image_embeds
        ratings: Tensor = self.head(functional.normalize(features, dim=-1))
        return ratings[:, 0]

    def prepare(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 3 size size"]:
        """Return the preprocessed images that the network takes."""
        return normalise(self.seen(images), self.image_mean, self.image_std)


def load_head(path: Path) -> LinearHead:
    """Load a head; its sizes are read from the file."""
    return load_linear_head(read_state_dict(path), path, HEAD_SIZES)


def load_encoder(folder: Path) -> CLIPVisionModelWithProjection:
    """Load a CLIP's vision tower with its projection; the text tower of a whole CLIP is left out."""
    check_model_type(folder, "clip", "clip_vision_model")
    network = CLIPVisionModelWithProjection(CLIPVisionConfig.from_pretrained(folder))
    load_folder(network, folder, without=OTHER_TOWER)
    return network
