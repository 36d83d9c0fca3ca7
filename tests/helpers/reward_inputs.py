"""Rewards by name, and images to score."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from tests.helpers.tiny_rewards import build_reward

PROMPTS = ["a dog is running", "a cat eats an apple"]


def pictures(height: int, width: int, *, seed: int = 0, batch: int = 2, num_frames: int = 3) -> Tensor:
    """8-bit frames with soft and sharp structure: blurred noise, a bright box, a dark one."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(batch * num_frames, 3, 5, 7, generator=generator)
    images = functional.interpolate(noise, (height, width), mode="bilinear")
    images += 0.1 * torch.rand(images.shape, generator=generator)
    for image in images:
        top, left = (int(torch.randint(0, side // 2, (1,), generator=generator)) for side in (height, width))
        image[:, top : top + height // 3, left : left + width // 4] = torch.rand(3, 1, 1, generator=generator)
        image[:, -top - height // 5 - 1 : -top - 1, -left - width // 6 - 1 : -left - 1] = 0.0
    return ((images.clamp(0, 1) * 255).round() / 255).unflatten(0, (batch, num_frames))


def as_pil(frames: Tensor) -> list[Image.Image]:
    """8-bit images of all frames of all videos."""
    arrays = (frames.flatten(0, 1).permute(0, 2, 3, 1) * 255).round().numpy().astype(np.uint8)
    return [Image.fromarray(array) for array in arrays]


def random_images(
    *shape: int, low: float = 0.0, high: float = 1.0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Independent uniform values between `low` and `high`."""
    return low + (high - low) * torch.rand(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


def refused(name: str, message: str, **options: Any) -> None:
    """Assert that building the reward fails with a message of one line."""
    with pytest.raises(ValueError, match=message) as caught:
        build_reward(name, **options)
    assert "\n" not in str(caught.value)


def checked_gradient(
    reward: Any, frames: Tensor, *, step: float = 1e-5, rtol: float = 1e-6, atol: float = 1e-8
) -> Tensor:
    """The gradient of the scores, compared with a central difference along a random direction.

    The error of the difference is of order step², and its rounding of order 1e-16 / step.
    """
    prompts, leaf = PROMPTS[: len(frames)], frames.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(reward(leaf, prompts).sum(), leaf)
    direction = torch.randn(frames.shape, dtype=frames.dtype, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        above, below = (reward(frames + sign * step * direction, prompts) for sign in (1, -1))
    slope = (above - below).sum() / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=rtol, atol=atol)
    assert gradient.any()
    return gradient
