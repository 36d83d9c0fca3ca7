"""Folder and video processor of rewards with a video network of transformers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from vader_ray.errors import UserError
from vader_ray.rewards.core.preprocess import normalise
from vader_ray.rewards.core.resizing import Resizing, centre_square
from vader_ray.rewards.core.transformers_loading import check_model_type, read_json
from vader_ray.types import Frames
from vader_ray.weights import resolve_weights

PROCESSORS = ("video_preprocessor_config.json", "preprocessor_config.json")
"""File names of transformers' video processors, and of the image processors of older video checkpoints."""


@dataclass(frozen=True, slots=True)
class Processor:
    """Published video processor: resize the short side (bilinear), crop the centre, normalise."""

    short: int
    """Short side after resizing, in pixels."""
    size: int
    """Side of the centre crop, in pixels."""
    mean: tuple[float, ...]
    """Mean of each colour channel."""
    std: tuple[float, ...]
    """Standard deviation of each colour channel."""

    def __call__(self, frames: Frames) -> Float[Tensor, "batch frames 3 size size"]:
        """Return the preprocessed frames that the network takes."""
        height, width = frames.shape[-2:]
        return normalise(self.resizing(height, width).seen(frames), self.mean, self.std)

    def resizing(self, height: int, width: int) -> Resizing:
        """Return the centre square of frames with the short side at `short`."""
        return centre_square(height, width, self.size, "bilinear", "transformers", short=self.short)


def obtain_folder(source: str, model_type: str, *files: str) -> Path:
    """Return the folder of a checkpoint of the architecture ``model_type``.

    Raises:
        UserError: the folder or a file is missing, or the architecture is another.
    """
    folder = resolve_weights(source, *files)
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; give the folder with its {' and '.join(files)}")
    check_model_type(folder, model_type)
    return folder


def read_processor(folder: Path) -> Processor:
    """Read the processor of a checkpoint.

    Raises:
        UserError: there is none, or its crop is larger than the resized frame.
    """
    path = next((folder / name for name in PROCESSORS if (folder / name).is_file()), folder / PROCESSORS[0])
    settings = read_json(path)
    short = settings["size"]["shortest_edge"]
    size = settings["crop_size"]["height"]
    if short < size:
        raise UserError(
            f"{path} crops {size} pixels from a short side of {short}; give the processor of these weights"
        )
    return Processor(short, size, tuple(settings["image_mean"]), tuple(settings["image_std"]))
