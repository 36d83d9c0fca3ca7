"""Presence or absence of a class of objects, detected by a YOLOS (arXiv 2106.00666)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional
from transformers import YolosConfig, YolosForObjectDetection

from vader_ray.errors import UserError
from vader_ray.rewards.base import FrameReward, frozen
from vader_ray.rewards.core.preprocess import Preprocessing, normalise
from vader_ray.rewards.core.resizing import Resizing, whole
from vader_ray.rewards.core.transformers_loading import (
    TRANSFORMERS_FILES,
    check_model_type,
    image_statistics,
    load_folder,
    read_json,
)
from vader_ray.weights import Source, resolve_weights

REPOSITORY = "hustvl/yolos-base"
RENAMED = {"vit.encoder.mid_position_embeddings": "vit.encoder.interpolation.mid_position_embeddings"}
"""Names of weights in published files, and their names in newer versions of transformers."""
SIDE_MULTIPLE = 16
"""The published processor rounds both sides down to a multiple of this."""
LONGEST_EDGE = 1333
"""Longest side in pixels if ``preprocessor_config.json`` gives none."""
VADER_HEIGHT = 512
"""Height in pixels of ``preprocessing=vader``."""
NOT_A_CLASS = "N/A"
"""Label of unused classes."""


class ObjectDetectionReward(FrameReward):
    """The mean over frames of the confidence that an object is present or absent.

    ``mode`` chooses presence (``add``) or absence (``remove``); the prompts have no influence.

    ``soft`` treats the probabilities p of the object in the network's detection tokens as independent. It is
    the logarithm of 1 − Π(1 − p), that at least one token detects it (``add``), or of Π(1 − p), that none
    does (``remove``); at most 0, without lower bound. Every image has a gradient, which is largest where the
    probability itself would have nearly none. Published networks have logits of about −40, which bfloat16
    rounds to multiples of 0.1 or 0.2: prefer float16 or float32. ``hard`` is the rule of VADER's authors: the
    mean of p over the boxes of the class with p above ``threshold``, 0 if there is no such box, and one minus
    that for ``remove``; from 0 to 1. An image without such a box has no gradient.

    Args:
        object: class name of the network, such as ``person`` or ``cat``.
        mode: whether presence (``add``) or absence (``remove``) is rewarded.
        score: ``soft`` or ``hard``, as above.
        threshold: of ``hard``; a box counts if the object is its most probable class, with a probability
            above the threshold.
        weights: hub repository or local folder in transformers' format.
        preprocessing: ``published`` resizes according to ``preprocessor_config.json`` (bilinear,
            antialiased); ``vader`` to a height of 512 pixels with the aspect ratio kept (bilinear, not
            antialiased).
    """

    unit = "soft: log-probability, at most 0; hard: mean box score, 0 to 1"
    default_weights = REPOSITORY
    licence = "Apache-2.0"

    def __init__(
        self,
        *,
        object: str,
        mode: Literal["remove", "add"] = "remove",
        score: Literal["soft", "hard"] = "soft",
        threshold: Annotated[float, Field(ge=0, lt=1)] = 0.2,
        weights: Source = REPOSITORY,
        preprocessing: Preprocessing = "published",
    ) -> None:
        super().__init__()
        folder = resolve_weights(weights, *TRANSFORMERS_FILES)
        self.detector = frozen(load_detector(folder))
        self.image_mean, self.image_std = image_statistics(folder)
        self.edges = _edges(folder / "preprocessor_config.json")
        self.index = class_index(object, self.detector.config.id2label)
        self.mode, self.rule, self.threshold, self.preprocessing = mode, score, threshold, preprocessing

    def score_images(
        self, images: Float[Tensor, "n 3 height width"], prompts: Sequence[str], /
    ) -> Float[Tensor, " n"]:
        """Return the score of each image, float32 at least."""
        logits: Tensor = self.detector(pixel_values=self.prepare(images).to(self.dtype)).logits
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return self._soft(logits) if self.rule == "soft" else self._hard(logits)

    def resizing(self, height: int, width: int) -> Resizing:
        """Return the size according to ``preprocessing``."""
        if self.preprocessing == "published":
            return whole(*fitted(height, width, *self.edges))
        return whole(VADER_HEIGHT, int(VADER_HEIGHT * width / height), antialias=False)

    def prepare(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 3 h w"]:
        """Return the preprocessed images that the network takes."""
        return normalise(self.seen(images), self.image_mean, self.image_std)

    def _soft(self, logits: Float[Tensor, "n tokens classes"]) -> Float[Tensor, " n"]:
        others = torch.cat([logits[..., : self.index], logits[..., self.index + 1 :]], dim=-1)
        # log(1 − p) = −softplus(log odds) stays exact, with its gradient, where p rounds to 0 or 1.
        absent = -functional.softplus(logits[..., self.index] - others.logsumexp(dim=-1)).sum(dim=-1)
        return absent if self.mode == "remove" else log_of_complement(absent)

    def _hard(self, logits: Float[Tensor, "n tokens classes"]) -> Float[Tensor, " n"]:
        largest, label = logits.softmax(dim=-1)[..., :-1].max(dim=-1)  # the last class is "no object"
        kept = (label == self.index) & (largest > self.threshold)
        mean = (largest * kept).sum(dim=-1) / kept.sum(dim=-1).clamp_min(1)
        return 1 - mean if self.mode == "remove" else mean


def log_of_complement(logarithm: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Return log(1 − exp(x)) for x ≤ 0, without loss of precision near 0 or −∞."""
    x = logarithm.clamp_max(-torch.finfo(logarithm.dtype).tiny)
    near_zero = x > -math.log(2)
    # Each branch has an argument with a finite derivative, also where the other branch is selected.
    small, large = torch.where(near_zero, x, -1.0), torch.where(near_zero, -1.0, x)
    return torch.where(near_zero, (-small.expm1()).log(), (-large.exp()).log1p())


def fitted(height: int, width: int, shortest: int, longest: int) -> tuple[int, int]:
    """Return the height and width after the published processor.

    The short side becomes ``shortest`` pixels unless the long side would exceed ``longest``; both are rounded
    down to a multiple of 16.
    """
    short, long = sorted((height, width))
    exact = longest * short / long if long / short * shortest > longest else shortest
    near = round(exact)
    far = long if height <= width and near == short else int(exact * long / short)
    near, far = (side - side % SIDE_MULTIPLE for side in (near, far))
    return (near, far) if height <= width else (far, near)


def class_index(name: str, labels: Mapping[int, str]) -> int:
    """Return the index of a class of the network.

    Raises:
        UserError: there is no class of this name; the message gives the nearest ones.
    """
    indices = {label: index for index, label in labels.items() if label != NOT_A_CLASS}
    if name not in indices:
        near = get_close_matches(name.lower(), indices, n=3, cutoff=0.5) or sorted(indices)[:10]
        raise UserError(
            f"the detector has no class {name!r}; the nearest of its {len(indices)} are {', '.join(near)}"
        )
    return int(indices[name])


def load_detector(folder: Path) -> YolosForObjectDetection:
    """Load the network of a folder in transformers' format, every weight of it."""
    check_model_type(folder, "yolos")
    network = YolosForObjectDetection(YolosConfig.from_pretrained(folder))
    load_folder(network, folder, renamed=RENAMED)
    return network


def _edges(path: Path) -> tuple[int, int]:
    """Return the shortest and the longest edge in pixels.

    New and old versions of transformers write them differently.
    """
    settings: Any = read_json(path)
    size = settings.get("size")
    if isinstance(size, int):
        return size, int(settings.get("max_size", LONGEST_EDGE))
    if not isinstance(size, dict) or "shortest_edge" not in size:
        raise UserError(
            f"{path} must have size.shortest_edge and has size={size!r}; copy it from the weights' hub "
            "repository"
        )
    return int(size["shortest_edge"]), int(size.get("longest_edge", LONGEST_EDGE))
