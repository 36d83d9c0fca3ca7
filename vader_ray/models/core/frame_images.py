"""Frames of a video as the images of image-to-video pipelines, with gradient.

The loops of diffusers open images with processors that convert them to arrays, through which no gradient
flows. While a loop runs on frames, its processors return these frames, prepared by the same operations on
tensors; the loop itself gets blank pictures of their size, whose sizes it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms
from transformers import BatchFeature

from vader_ray.models.core.loop_hooks import replace_attribute
from vader_ray.types import Images


def frames_of(images: Any) -> Images | None:
    """Return first frames that are tensors, as one tensor; None if they are opened pictures."""
    return torch.stack(list(images)) if isinstance(images[0], Tensor) else None


def blank_pictures(frames: Images) -> list[Any]:
    """Return one black picture of each frame's size."""
    return [Image.new("RGB", (frames.shape[-1], frames.shape[-2])) for _ in frames]


@contextmanager
def frames_in_processors(pipe: Any, frames: Images, encoder_pixels: Callable[..., Tensor]) -> Iterator[None]:
    """Let a pipeline's image processors return frames, whatever they are given.

    Args:
        pipe: the pipeline.
        frames: first frames of all videos of a call.
        encoder_pixels: function of the processor of the image encoder and the frames, which returns the
            input of that encoder.
    """

    def for_autoencoder(*_: Any, **__: Any) -> Tensor:
        return frames * 2 - 1

    with ExitStack() as undo:
        replace_attribute(undo, pipe.video_processor, "preprocess", for_autoencoder)
        for name in ("image_processor", "feature_extractor"):
            if (processor := getattr(pipe, name, None)) is not None:

                def for_encoder(*_: Any, processor: Any = processor, **__: Any) -> BatchFeature:
                    return BatchFeature({"pixel_values": encoder_pixels(processor, frames)})

                replace_attribute(undo, processor, "preprocess", for_encoder)
        yield


def processed(processor: Any, frames: Images) -> Tensor:
    """Resize, crop and normalise frames as a processor of transformers does with pictures of 8 bits.

    Args:
        processor: that of CLIP or SigLIP.
        frames: first frames.
    """
    if processor.do_resize:
        frames = processor.resize(frames, processor.size, resample=processor.resample)
    if getattr(processor, "do_center_crop", None):
        frames = processor.center_crop(frames, processor.crop_size)
    pixels: Tensor = transforms.normalize(frames, processor.image_mean, processor.image_std)
    return pixels
