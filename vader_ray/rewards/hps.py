"""Human Preference Score v2 (arXiv 2306.09341): an open_clip ViT-H-14 trained on human choices."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import open_clip  # type: ignore[import-untyped, unused-ignore]
import torch
from jaxtyping import Float
from torch import Tensor

from vader_ray.config import Weights
from vader_ray.errors import UserError
from vader_ray.rewards.base import frozen
from vader_ray.rewards.core.clip import PromptReward
from vader_ray.rewards.core.preprocess import normalise, on_black
from vader_ray.rewards.core.resizing import Resizing, letterboxed, whole
from vader_ray.weights import Source, load_strictly, only_file, read_state_dict, resolve_weights

FILES = {"v2.0": "HPS_v2_compressed.pt", "v2.1": "HPS_v2.1_compressed.pt"}
CONFIG = "open_clip_config.json"
REPOSITORY = "xswu/HPSv2"


class HPSReward(PromptReward):
    """The mean over frames of cosine(image, prompt), without the logit scale.

    Args:
        weights: hub repository with the published files, local ``{"state_dict": …}`` file, or folder with one
            ``*.pt`` file and its ``open_clip_config.json``.
        version: which file of the hub repository.
        architecture: name of an open_clip architecture, or folder with ``open_clip_config.json``; not used if
            ``weights`` is a folder with such a file.
        preprocessing: ``published`` letterboxes (long side bicubic, black borders), as hpsv2 1.2.0 does with
            torchvision 0.17 or newer; older torchvision does not antialias there. ``vader`` resizes to a
            square (bilinear), ``videox_fun`` to a square (bicubic), as VideoX-Fun.
    """

    unit = "cosine"
    default_weights = REPOSITORY
    licence = "Apache-2.0"

    def __init__(
        self,
        *,
        weights: Source = REPOSITORY,
        version: Literal["v2.0", "v2.1"] = "v2.1",
        architecture: Weights = "ViT-H-14",
        preprocessing: Literal["published", "vader", "videox_fun"] = "published",
    ) -> None:
        super().__init__()
        found = resolve_weights(weights, FILES[version])
        if (found / CONFIG).is_file():
            architecture, checkpoint = str(found), only_file(found, "*.pt")
        else:
            checkpoint = found if found.is_file() else found / FILES[version]
        state = read_state_dict(checkpoint)
        clip, self.tokenize = create(architecture)
        load_strictly(clip, state, checkpoint)
        self.clip = frozen(clip)
        self.preprocessing = preprocessing

    def resizing(self, height: int, width: int) -> Resizing:
        """Return the long side at the network's image size; of other preprocessings a square."""
        size = self.clip.visual.image_size[0]
        if self.preprocessing == "published":
            return letterboxed(height, width, size, "bicubic")
        return whole(size, size, "bicubic" if self.preprocessing == "videox_fun" else "bilinear", clamp=False)

    def prepare(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 3 size size"]:
        """Return the preprocessed images that the network takes."""
        visual = self.clip.visual
        square = on_black(self.seen(images), visual.image_size[0])
        return normalise(square, visual.image_mean, visual.image_std)

    def encode_images(self, pixels: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n features"]:
        """Return the embedding of each image; its norm has no influence."""
        features: Tensor = self.clip.encode_image(pixels)
        return features

    def encode_prompt(self, prompt: str, device: torch.device) -> Float[Tensor, "1 features"]:
        """Return the embedding of one prompt; its norm has no influence."""
        features: Tensor = self.clip.encode_text(self.tokenize([prompt]).to(device))
        return features


def create(architecture: str, *, device: str | None = None) -> tuple[Any, Any]:
    """Return an open_clip network with random weights, and its tokenizer.

    Args:
        architecture: name, or folder with ``open_clip_config.json``.
        device: of the network; by default torch's default device.

    Raises:
        UserError: open_clip has no such architecture.
    """
    device = device or str(torch.get_default_device())
    name = f"local-dir:{architecture}" if Path(architecture).is_dir() else architecture
    try:
        with _silenced_root_logger():
            return open_clip.create_model(name, load_weights=False, device=device), open_clip.get_tokenizer(
                name
            )
    except (RuntimeError, OSError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).partition(". ")[0].split())
        raise UserError(
            f"open_clip cannot build the architecture {architecture!r} ({reason}); "
            f"give a name of open_clip.list_models() or a folder with a valid {CONFIG}"
        ) from error


@contextmanager
def _silenced_root_logger() -> Iterator[None]:
    """Silence open_clip, which logs to the root logger.

    It would install a handler there and warn about weights that are loaded later.
    """
    root, handler = logging.getLogger(), logging.NullHandler()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
