"""Frames, scores and gradients on their way between a worker and an actor, without Ray."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.placed_rewards import random_frames
from vader_ray.orchestration.reward_service.transport import decode_frames, encode_frames

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
