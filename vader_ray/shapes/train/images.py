"""Draw the image prompts: first frames of uncurated scenes, with file names that name what they show."""

from pathlib import Path

import torch
from PIL import Image
from torch import Generator, Tensor

from vader_ray.shapes.data import captions, captions_of, draw_scenes, render, truthful
from vader_ray.shapes.train._loop import replaced


def draw_images(out: Path, *, num_images: int = 30, num_scenes: int = 30_000) -> None:
    """Writes `images_train`, `images_validation` and `images_test` into the folder `prompts` beside `out`, no
    look of the last two being in the first."""
    scenes = draw_scenes(num_scenes, Generator().manual_seed(9))
    showing = {caption: index for index, caption in enumerate(captions_of(truthful(scenes)))}
    for split in ("train", "validation", "test"):
        every = captions(split)
        chosen = every[:: max(1, len(every) // num_images)][:num_images]
        frames = render(scenes[torch.tensor([showing[caption] for caption in chosen])])[:, 0]
        with replaced(out.parent / "prompts" / f"images_{split}") as folder:
            for caption, frame in zip(chosen, frames, strict=True):
                to_image(frame).save(folder / f"{caption.replace(' ', '_')}.png")


def to_image(frame: Tensor) -> Image.Image:
    """The picture of a frame in [0, 1]."""
    return Image.fromarray((frame * 255).round().byte().permute(1, 2, 0).numpy())
