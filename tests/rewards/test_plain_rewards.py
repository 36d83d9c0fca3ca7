"""Rewards without a network: the published formulas by other libraries, real JPEG files, moving patterns,
finite differences."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage  # type: ignore[import-untyped]
from torch import Tensor

from tests.helpers.reward_inputs import PROMPTS, pictures, random_images
from tests.helpers.tiny_rewards import build_reward as build
from vader_ray.rewards import motion
from vader_ray.shapes.data import cleaned, draw_scenes, render

PLAIN = ["colorfulness", "jpeg_compressibility", "motion", "sharpness"]


@pytest.mark.parametrize(("height", "width"), [(5, 7), (16, 16)])
@pytest.mark.parametrize("name", PLAIN)
def test_gradient_is_its_finite_difference(name: str, height: int, width: int) -> None:
    reward = build(name)
    frames = random_images(1, 2, 3, height, width, low=0.2, high=0.8, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: reward(x, PROMPTS[:1]), (frames,), fast_mode=height == 16)


@pytest.mark.parametrize("name", PLAIN)
def test_two_videos_are_twice_one(name: str) -> None:
    reward = build(name)
    frames = pictures(40, 56, num_frames=4)
    both = reward(frames, PROMPTS)
    assert both[0] != both[1]
    for video in range(2):
        torch.testing.assert_close(reward(frames[video : video + 1], PROMPTS[:1])[0], both[video])


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", PLAIN)
def test_a_flat_video_has_a_finite_gradient(name: str, value: float) -> None:
    frames = torch.full((1, 3, 3, 24, 32), value, requires_grad=True)
    score = build(name)(frames, PROMPTS[:1])
    (gradient,) = torch.autograd.grad(score.sum(), frames)
    assert gradient.isfinite().all()
    if name != "jpeg_compressibility":
        assert abs(float(score.detach())) < 1e-4


# ---- published formulas


def test_colorfulness_is_hasler_and_suesstrunks() -> None:
    frames = pictures(30, 40, num_frames=3)
    expected = []
    for video in (frames * 255).double().numpy():
        values = []
        for red, green, blue in video:
            opponents = (red - green, 0.5 * (red + green) - blue)
            spread, mean = (
                np.hypot(*(np.std(o) for o in opponents)),
                np.hypot(*(np.mean(o) for o in opponents)),
            )
            values.append(spread + 0.3 * mean)
        expected.append(np.mean(values))
    scores = build("colorfulness")(frames, PROMPTS)
    # the two rounded roots fall short of the published ones by at most 1.3 times 0.01
    torch.testing.assert_close(scores, torch.tensor(expected).float(), atol=0.014, rtol=0)
    vivid = frames.mean(dim=2, keepdim=True) + 1.5 * (frames - frames.mean(dim=2, keepdim=True))
    torch.testing.assert_close(build("colorfulness")(vivid, PROMPTS), 1.5 * scores, rtol=1e-3, atol=0)


def test_sharpness_is_the_variance_of_the_laplacian() -> None:
    frames = pictures(30, 40, num_frames=3)
    grey = np.einsum("bfchw,c->bfhw", (frames * 255).double().numpy(), (0.299, 0.587, 0.114))
    expected = [np.mean([ndimage.laplace(image, mode="mirror").var() for image in video]) for video in grey]
    torch.testing.assert_close(
        build("sharpness")(frames, PROMPTS), torch.tensor(expected).float(), rtol=1e-4, atol=0
    )


# ---- motion


def moving_waves(wave: float, speed: float, *, num_frames: int = 5, size: int = 48) -> Tensor:
    """A sum of 12 sines of about this wavelength in all directions, moved along (0.8, 0.6)."""
    generator = torch.Generator().manual_seed(1)
    angles, phases, lengths = (torch.rand(12, generator=generator, dtype=torch.float64) for _ in range(3))
    down, across = torch.meshgrid(*(torch.arange(size, dtype=torch.float64),) * 2, indexing="ij")
    video = []
    for time in range(num_frames):
        x, y = across - 0.8 * speed * time, down - 0.6 * speed * time
        parts = [
            torch.sin(
                2 * math.pi * ((torch.cos(6.3 * angle) * x + torch.sin(6.3 * angle) * y) / length + phase)
            )
            for angle, phase, length in zip(angles, phases, wave * (0.7 + 0.6 * lengths), strict=True)
        ]
        video.append(0.5 + 0.08 * torch.stack(parts).sum(dim=0))
    return torch.stack(video).clamp(0, 1)[None, :, None].repeat(1, 1, 3, 1, 1)


@pytest.mark.parametrize("wave", [8, 12, 20])
def test_motion_is_in_pixels_per_frame(wave: float) -> None:
    reward = build("motion")
    assert float(reward(moving_waves(wave, 0.0), PROMPTS[:1])) < 1e-6
    for speed, allowed in ((0.1, 0.3), (0.25, 0.3), (0.5, 0.3), (1.0, 0.3), (2.0, 0.35)):
        video = moving_waves(wave, speed)
        assert float(reward(video, PROMPTS[:1])) == pytest.approx(speed, rel=allowed)
        right, down = motion.flow(video).mean(dim=(0, 1, 3, 4)).tolist()
        assert (right, down) == pytest.approx((0.8 * speed, 0.6 * speed), rel=allowed)


def test_motion_tells_moving_shapes_from_flickering_ones() -> None:
    videos = render(cleaned(draw_scenes(16, torch.Generator().manual_seed(3))))
    reward = build("motion")
    still = videos[:, :1].expand(-1, 8, -1, -1, -1)
    flicker = 0.8 + 0.2 * torch.rand(16, 8, 1, 1, 1, generator=torch.Generator().manual_seed(4))
    moving = reward(videos, [""] * 16)
    assert moving.min() > 0.1
    assert reward(still, [""] * 16).max() < 1e-6
    assert reward(still * flicker, [""] * 16).mean() < moving.mean() / 6


def test_motion_needs_two_frames() -> None:
    with pytest.raises(ValueError, match="motion compares neighbouring frames and got 1"):
        build("motion")(random_images(1, 1, 3, 16, 16), PROMPTS[:1])


# ---- JPEG


def spectral_pictures(num_pictures: int, height: int, width: int, *, seed: int) -> Tensor:
    """Colour noise with 1/f spectra of several steepnesses and contrasts, as photographs have."""
    generator = torch.Generator().manual_seed(seed)
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]).clamp(
        min=1 / width
    )
    images = []
    for _ in range(num_pictures):
        steepness, contrast = torch.rand(2, generator=generator).tolist()
        spectrum = torch.complex(*(torch.randn(3, *frequency.shape, generator=generator) for _ in range(2)))
        waves = torch.fft.irfft2(spectrum * frequency ** -(0.6 + 1.6 * steepness), s=(height, width))
        mixed = torch.einsum(
            "cd,dhw->chw", torch.tensor([[1.0, 0.3, 0.1], [1.0, -0.1, 0.2], [1.0, -0.2, -0.3]]), waves
        )
        images.append(0.5 + (0.08 + 0.2 * contrast) * (mixed - mixed.mean()) / mixed.std())
    return (torch.stack(images).clamp(0, 1) * 255).round() / 255


def jpeg_bytes(images: Tensor, quality: int) -> Tensor:
    sizes = []
    for image in (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling="4:2:0")
        sizes.append(file.tell())
    return torch.tensor(sizes).float()


def shapes_frames() -> Tensor:
    videos = render(draw_scenes(48, torch.Generator().manual_seed(5)))[:, ::4].flatten(0, 1)
    return (videos * 255).round() / 255


@pytest.mark.parametrize("quality", [30, 50, 75, 90])
@pytest.mark.parametrize(
    ("images", "error", "correlation"),
    [
        (shapes_frames(), 0.02, 0.985),
        (spectral_pictures(24, 96, 128, seed=7), 0.02, 0.999),
        (spectral_pictures(24, 75, 107, seed=8), 0.02, 0.999),  # sides that are no multiples of 16
        (pictures(96, 120, batch=12, num_frames=1, seed=9).flatten(0, 1), 0.04, 0.8),
    ],
    ids=["shapes", "spectral", "padded", "boxes"],
)
def test_jpeg_estimate_is_near_real_files(
    images: Tensor, error: float, correlation: float, quality: int
) -> None:
    """Mean relative error and correlation, on pictures that the fit of the four constants has not seen."""
    estimate = build("jpeg_compressibility", quality=quality).bytes_per_frame(images[:, None])[:, 0]
    real = jpeg_bytes(images, quality)
    assert float(((estimate - real) / real).abs().mean()) < error
    assert float(torch.corrcoef(torch.stack([estimate, real]))[0, 1]) > correlation


def test_jpeg_score_is_minus_kilobytes_and_its_ascent_shrinks_the_file() -> None:
    frames = spectral_pictures(2, 64, 64, seed=1)[None]
    reward = build("jpeg_compressibility")
    assert float(reward(frames, PROMPTS[:1])) == pytest.approx(
        -float(jpeg_bytes(frames[0], 75).mean()) / 1000, rel=0.05
    )
    moved = frames.clone()
    for _ in range(10):
        leaf = moved.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(reward(leaf, PROMPTS[:1]).sum(), leaf)
        moved = (moved + 0.01 * gradient / gradient.abs().amax()).clamp(0, 1)
    assert jpeg_bytes(moved[0], 75).sum() < 0.9 * jpeg_bytes(frames[0], 75).sum()


@pytest.mark.parametrize("quality", [1, 10, 50, 75, 100])
def test_quantisation_is_pillows(quality: int) -> None:
    from vader_ray.rewards import jpeg_compressibility as jpeg

    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG", quality=quality)
    tables: dict[int, Any] = Image.open(file).quantization  # type: ignore[attr-defined]
    for index, table in enumerate((jpeg.LUMA, jpeg.CHROMA)):
        assert jpeg.quantisation(table, quality).flatten().tolist() == list(tables[index])
