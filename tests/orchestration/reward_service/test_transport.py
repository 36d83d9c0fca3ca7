"""Frames, scores and gradients on their way between a worker and an actor, without Ray."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.placed_rewards import random_frames
from vader_ray.orchestration.reward_service.transport import RewardSpec, decode_frames, encode_frames
from vader_ray.rewards.core.resizing import whole

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


def test_frames_are_sent_resized_only_if_that_is_smaller_and_changes_nothing() -> None:
    """A reward that enlarges frames gets them as they are; so does one that would resize them once more."""
    halved, enlarged = whole(4, 4), whole(16, 16)
    for resizing, idempotent, sent in ((halved, True, 16), (enlarged, True, 64), (halved, False, 64)):
        spec = RewardSpec("frame", "none", resizing, can_be_sent_resized=idempotent)
        assert spec.sent_as(8, 8, resize_frames=True).num_pixels == sent
        assert spec.sent_as(8, 8, resize_frames=False) == whole(8, 8)
