"""A small convolutional network that classifies the videos of the shapes data set; a metric, never a
reward."""

from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vader_ray.errors import UserError
from vader_ray.shapes import checkpoint
from vader_ray.shapes.data import ATTRIBUTES, NUM_FRAMES
from vader_ray.weights import load_strictly, read_state_dict

_OF_LOOKS, _OF_MOTION = ("colour", "shape", "landmark"), ("direction", "speed")


class CaptionClassifier(nn.Module):
    """Classifies every attribute of a caption in the first 8 frames of 3 x 64 x 64, in [0, 1].

    Wan makes a ninth frame, which is ignored.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (12, 24, 48, 64)
        layers: list[nn.Module] = [nn.PixelUnshuffle(2)]
        for width_in, width_out in pairwise(widths):
            layers += [nn.Conv2d(width_in, width_out, 3, padding=1), nn.GroupNorm(4, width_out), nn.ReLU()]
            layers += [
                nn.Conv2d(width_out, width_out, 3, padding=1, stride=2),
                nn.GroupNorm(4, width_out),
                nn.ReLU(),
            ]
        self.convolutions = nn.Sequential(*layers)
        self.look = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, sum(_sizes(_OF_LOOKS))))
        self.where = nn.Sequential(nn.Conv2d(64, 16, 1), nn.Flatten(), nn.ReLU())
        self.motion = nn.Sequential(
            nn.Linear(256 * NUM_FRAMES, 64), nn.ReLU(), nn.Linear(64, sum(_sizes(_OF_MOTION)))
        )

    def forward(
        self, frames: Float[Tensor, "videos frames 3 height width"]
    ) -> dict[str, Float[Tensor, "videos _"]]:
        """Return the logits of each attribute."""
        frames = frames[:, :NUM_FRAMES]
        features = self.convolutions(frames.flatten(0, 1) * 2 - 1)
        look = self.look(features.amax((2, 3))).view(*frames.shape[:2], -1).mean(1)
        motion = self.motion(self.where(features).view(len(frames), -1))
        logits = dict(zip(_OF_LOOKS, look.split(_sizes(_OF_LOOKS), -1), strict=True))
        return logits | dict(zip(_OF_MOTION, motion.split(_sizes(_OF_MOTION), -1), strict=True))

    @torch.no_grad()
    def follows(
        self, frames: Float[Tensor, "videos frames 3 height width"], captions: list[str]
    ) -> dict[str, Bool[Tensor, " videos"]]:
        """Compare each video with its caption: for each attribute, True where the two agree.

        Raises:
            UserError: a caption names no value of an attribute, or several.
        """
        dtype = next(self.parameters()).dtype
        logits = self(frames.to(dtype))
        return {
            name: logits[name].argmax(-1) == caption_labels(captions, name).to(frames.device)
            for name in ATTRIBUTES
        }

    def accuracy(
        self, frames: Float[Tensor, "videos frames 3 height width"], captions: list[str]
    ) -> dict[str, float]:
        """Return the share of videos that show each attribute of their captions."""
        return {name: right.double().mean().item() for name, right in self.follows(frames, captions).items()}


def load_caption_classifier() -> CaptionClassifier:
    """Load the packaged classifier, frozen and in eval mode."""
    path = checkpoint("caption_classifier") / "caption_classifier.safetensors"
    classifier = CaptionClassifier()
    load_strictly(classifier, read_state_dict(path), path)
    return classifier.eval().requires_grad_(False)


def _sizes(names: tuple[str, ...]) -> list[int]:
    return [len(ATTRIBUTES[name]) for name in names]


def caption_labels(captions: list[str], attribute: str) -> Int[Tensor, " captions"]:
    """Return the index of the value of the `attribute` that each caption names; without one of its words, of
    the empty one.

    Raises:
        UserError: a caption names several values of the attribute, or none where it must name one.
    """
    words = ATTRIBUTES[attribute]
    labels = []
    for caption in captions:
        named = [word for word in words if word in caption.split()] or [word for word in words if not word]
        if len(named) != 1:
            expected = ", ".join(word for word in words if word)
            raise UserError(f"expected one {attribute} out of {expected} in the caption {caption!r}")
        labels.append(words.index(named[0]))
    return torch.tensor(labels)
