"""Frames, scores and gradients on their way between a worker and an actor, without Ray."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from tests.helpers.placed_rewards import random_frames
from vader_ray.orchestration.reward_service.transport import decode_frames, encode_frames, spec_of
from vader_ray.rewards.core.resizing import Resizing, whole
from vader_ray.types import Frames, Granularity, Scores

CPU = torch.device("cpu")
WHOLE = (slice(0, 8), slice(0, 8))


@pytest.mark.parametrize(("transport", "error"), [("float32", 0.0), ("bfloat16", 2**-8), ("float16", 2**-11)])
def test_what_travels_arrives_within_its_precision(transport: str, error: float) -> None:
    """Half a unit in the last place, relative to the largest value for tiny ones in scaled float16."""
    gradient = (
        torch.randn(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        * torch.tensor([1e-9, 1e6])[:, None, None, None, None]
    )
    arrived = decode_frames(encode_frames(gradient, WHOLE, transport, is_gradient=True), CPU)
    largest = gradient.flatten(1).abs().amax(dim=1)
    assert ((arrived - gradient).flatten(1).abs().amax(dim=1) <= error * largest).all()
    assert (arrived != 0).float().mean() > 0.99


def test_only_the_region_travels() -> None:
    frames = random_frames()
    packed = encode_frames(frames, (slice(2, 6), slice(1, 8)), "float32")
    assert packed.pixels.shape == (2, 3, 3, 4, 7)
    arrived = decode_frames(packed, CPU)
    torch.testing.assert_close(arrived[..., 2:6, 1:], frames[..., 2:6, 1:], rtol=0, atol=0)
    assert not arrived[..., :2, :].any()
    assert not arrived[..., :1].any()


def test_a_gradient_of_zeros_travels() -> None:
    assert not decode_frames(
        encode_frames(torch.zeros(2, 1, 3, 8, 8), WHOLE, "float16", is_gradient=True), CPU
    ).any()


class Resized:
    """A reward that resizes frames by a factor, or to a side."""

    granularity: Granularity = "frame"
    unit = "none"

    def __init__(self, *, side: int | None = None, factor: float = 1.0) -> None:
        self.side, self.factor = side, factor

    def resizing(self, height: int, width: int) -> Resizing:
        return whole(self.side or round(height * self.factor), self.side or round(width * self.factor))

    def __call__(self, frames: Frames, prompts: Sequence[str], /) -> Scores:
        return self.resizing(*frames.shape[-2:]).seen(frames).mean(dim=(1, 2, 3, 4))


def test_frames_are_sent_resized_only_if_that_is_smaller_and_changes_nothing() -> None:
    """A reward that enlarges frames gets them as they are; so does one that would resize them once more."""
    for reward, sent in ((Resized(side=4), 16), (Resized(side=16), 64), (Resized(factor=0.5), 64)):
        spec = spec_of(reward, 8, 8)
        assert spec.resized.num_pixels == sent
        assert spec.unresized == whole(8, 8)
