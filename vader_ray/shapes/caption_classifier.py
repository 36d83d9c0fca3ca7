"""A small convolutional network that classifies the videos of the shapes data set; a metric, never a
reward."""

from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vader_ray.errors import UserError
from vader_ray.shapes import checkpoint
from vader_ray.shapes.data import COLOURS, DIRECTIONS, NUM_FRAMES, SHAPES
from vader_ray.weights import load_strictly, read_state_dict

LABELS = {"colour": COLOURS, "shape": SHAPES, "direction": DIRECTIONS}
"""Classes that the network distinguishes, by attribute: the words of a caption."""


class CaptionClassifier(nn.Module):
    """Classifies colour, shape and direction of motion in the first 8 frames of 3 x 32 x 32, in [0, 1].

    Wan makes a ninth frame, which is ignored.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 64)
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            layers += [nn.Conv2d(width_in, width_out, 3, padding=1), nn.GroupNorm(4, width_out), nn.ReLU()]
            layers += [
                nn.Conv2d(width_out, width_out, 3, padding=1, stride=2),
                nn.GroupNorm(4, width_out),
                nn.ReLU(),
            ]
        self.convolutions = nn.Sequential(*layers)
        self.look = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, len(COLOURS) + len(SHAPES)))
        self.where = nn.Sequential(nn.Conv2d(64, 16, 1), nn.Flatten(), nn.ReLU())
        self.motion = nn.Sequential(
            nn.Linear(256 * NUM_FRAMES, 64), nn.ReLU(), nn.Linear(64, len(DIRECTIONS))
        )

    def forward(
        self, frames: Float[Tensor, "videos frames 3 height width"]
    ) -> dict[str, Float[Tensor, "videos _"]]:
        """Return the logits of each attribute."""
        frames = frames[:, :NUM_FRAMES]
        features = self.convolutions(frames.flatten(0, 1) * 2 - 1)
        look = self.look(features.amax((2, 3))).view(*frames.shape[:2], -1).mean(1)
        colour, shape = torch.split(look, [len(COLOURS), len(SHAPES)], dim=-1)
        direction = self.motion(self.where(features).view(len(frames), -1))
        return {"colour": colour, "shape": shape, "direction": direction}

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
            for name in LABELS
        }

    def accuracy(
        self, frames: Float[Tensor, "videos frames 3 height width"], captions: list[str]
    ) -> dict[str, float]:
        """Return the share of videos that show the `colour`, `shape` and `direction` of their captions."""
        return {name: right.double().mean().item() for name, right in self.follows(frames, captions).items()}


def load_caption_classifier() -> CaptionClassifier:
    """Load the packaged classifier, frozen and in eval mode."""
    path = checkpoint("caption_classifier") / "caption_classifier.safetensors"
    classifier = CaptionClassifier()
    load_strictly(classifier, read_state_dict(path), path)
    return classifier.eval().requires_grad_(False)


def caption_labels(captions: list[str], attribute: str) -> Int[Tensor, " captions"]:
    """Return the index of the `attribute` that each caption names.

    Raises:
        UserError: a caption names no value of the attribute, or several.
    """
    words = LABELS[attribute]
    found = [[index for index, word in enumerate(words) if word in caption.split()] for caption in captions]
    for caption, indices in zip(captions, found, strict=True):
        if len(indices) != 1:
            raise UserError(f"expected one {attribute} out of {', '.join(words)} in the caption {caption!r}")
    return torch.tensor(found)[:, 0]
