"""A small convolutional network that says what a video shows; never a reward, it exposes rewards that were hacked."""

from itertools import pairwise
from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn

from vader_ray.shapes import checkpoint
from vader_ray.shapes.data import COLOURS, DIRECTIONS, NUM_FRAMES, SHAPES

_HEADS = {"colour": COLOURS, "shape": SHAPES, "direction": DIRECTIONS}


class Judge(nn.Module):
    """Names colour, shape and direction of motion in the first 8 frames of 3x32x32, in [0, 1]; a ninth is Wan's."""

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

    @classmethod
    def load(cls) -> Self:
        """The packaged judge, ready to use."""
        judge = cls()
        judge.load_state_dict(load_file(checkpoint("judge") / "judge.safetensors"))
        return judge.eval().requires_grad_(False)

    def forward(
        self, frames: Float[Tensor, "videos frames 3 height width"]
    ) -> dict[str, Float[Tensor, "videos _"]]:
        """Logits of each attribute."""
        frames = frames[:, :NUM_FRAMES]
        features = self.convolutions(frames.flatten(0, 1) * 2 - 1)
        look = self.look(features.amax((2, 3))).view(*frames.shape[:2], -1).mean(1)
        colour, shape = torch.split(look, [len(COLOURS), len(SHAPES)], dim=-1)
        direction = self.motion(self.where(features).view(len(frames), -1))
        return {"colour": colour, "shape": shape, "direction": direction}

    @torch.no_grad()
    def obeyed(
        self, frames: Float[Tensor, "videos frames 3 height width"], captions: list[str]
    ) -> dict[str, Bool[Tensor, " videos"]]:
        """For each attribute, whether each video shows what its caption says."""
        dtype = next(self.parameters()).dtype
        logits = self(frames.to(dtype))
        return {name: logits[name].argmax(-1) == said_in(captions, name).to(frames.device) for name in _HEADS}

    def accuracy(
        self, frames: Float[Tensor, "videos frames 3 height width"], captions: list[str]
    ) -> dict[str, float]:
        """The share of videos that show the `colour`, `shape` and `direction` of their captions."""
        return {name: right.double().mean().item() for name, right in self.obeyed(frames, captions).items()}


def said_in(captions: list[str], attribute: str) -> Int[Tensor, " captions"]:
    """Index of the `attribute` each caption names; raises ValueError where a caption names none."""
    names = _HEADS[attribute]
    said = [[index for index, name in enumerate(names) if name in caption.split()] for caption in captions]
    for caption, found in zip(captions, said, strict=True):
        if len(found) != 1:
            raise ValueError(f"expected one {attribute} out of {', '.join(names)} in the caption {caption!r}")
    return torch.tensor(said)[:, 0]
