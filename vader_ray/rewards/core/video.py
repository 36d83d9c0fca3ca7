"""What rewards with a transformers video network share: its folder and its video processor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from vader_ray.config import ConfigError
from vader_ray.rewards.core.preprocess import crop, crop_region, normalise
from vader_ray.rewards.core.transformers_loading import check_model_type, read_json
from vader_ray.types import Frames
from vader_ray.weights import resolve_weights

PROCESSORS = ("video_preprocessor_config.json", "preprocessor_config.json")
"""Of transformers' video processors, and of the image processors that older checkpoints of videos come with."""


@dataclass(frozen=True, slots=True)
class Processor:
    """What the published video processor does: short side to ``short`` (bilinear), centre ``size``, normalised."""

    short: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, frames: Frames) -> Float[Tensor, "batch frames 3 size size"]:
        """What the network sees."""
        return normalise(
            crop(frames, self.size, "bilinear", "transformers", short=self.short), self.mean, self.std
        )

    def region(self, height: int, width: int) -> tuple[slice, slice]:
        """The rows and columns of a frame outside which pixels have exactly no influence."""
        return crop_region(height, width, self.size, "bilinear", "transformers", short=self.short)


def obtain_folder(source: str, model_type: str, *files: str) -> Path:
    """The folder of a checkpoint whose ``config.json`` says ``model_type``.

    Raises:
        ConfigError: no folder, no such file, or another architecture.
    """
    folder = resolve_weights(source, *files)
    if not folder.is_dir():
        raise ConfigError(f"{folder} is a file; give the folder with its {' and '.join(files)}")
    check_model_type(folder, model_type)
    return folder


def read_processor(folder: Path) -> Processor:
    """The processor of a checkpoint.

    Raises:
        ConfigError: there is none, or it crops more than it leaves.
    """
    path = next((folder / name for name in PROCESSORS if (folder / name).is_file()), folder / PROCESSORS[0])
    settings = read_json(path)
    short = settings["size"]["shortest_edge"]
    size = settings["crop_size"]["height"]
    if short < size:
        raise ConfigError(
            f"{path} crops {size} pixels out of a short side of {short}; give the processor of these weights"
        )
    return Processor(short, size, tuple(settings["image_mean"]), tuple(settings["image_std"]))
