"""Videos for the rewards that look at motion: steady or shaken, drawn or decoded, spoiled by degrees."""

from dataclasses import dataclass, replace

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float, UInt8
from torch import Generator, Tensor

from vader_ray.shapes.data import JITTER, NUM_FRAMES, Scenes, cleaned, draw_scenes, render
from vader_ray.shapes.train._pictures import merged
from vader_ray.shapes.train.vae import decode, encode

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalised(frames: Tensor) -> Tensor:
    """Normalise frames in [0, 1] with ImageNet's mean and standard deviation."""
    mean, deviation = (torch.tensor(value).view(3, 1, 1) for value in (IMAGENET_MEAN, IMAGENET_DEVIATION))
    return (frames - mean) / deviation


def steadied(scenes: Scenes) -> Scenes:
    """The same scenes, as dull, hazy and blurred as they are, without flicker and jitter."""
    calm = cleaned(scenes)
    return replace(scenes, centre=calm.centre, brightness=calm.brightness)


def shaken(scenes: Scenes, generator: Generator, *, flicker: bool = True, jitter: bool = True) -> Scenes:
    """Return the same scenes with more flicker and jitter, as strong as in the unsteady third of all."""
    num = len(scenes)
    step = (torch.rand(num, 1, 1, generator=generator) * 0.7 + 0.3) * JITTER
    centre = scenes.centre + jitter * step * torch.randn(num, NUM_FRAMES, 2, generator=generator)
    change = torch.rand(num, 1, generator=generator) * 0.15 + 0.05
    brightness = scenes.brightness + flicker * change * torch.randn(num, NUM_FRAMES, generator=generator)
    return replace(scenes, centre=centre, brightness=brightness)


@torch.no_grad()
def redecoded(
    vae: AutoencoderKL,
    videos: Float[Tensor, "videos frames 3 height width"],
    share: Float[Tensor, " videos"],
    generator: Generator,
) -> Float[Tensor, "videos frames 3 height width"]:
    """Decode the videos' latents after mixing in a share of noise; a share of 1 leaves only noise."""
    parts = []
    for part, amount in zip(videos.split(32), share.view(-1, 1, 1, 1, 1).split(32), strict=True):
        latents = encode(vae, part)
        noise = torch.randn(latents.shape, generator=generator)
        parts.append(decode(vae, (1 - amount**2).sqrt() * latents + amount * noise))
    return torch.cat(parts)


@dataclass(frozen=True)
class Videos:
    """Videos with the scene each one shows, and how far each was spoiled, from 0 to 1."""

    frames: UInt8[Tensor, "videos frames 3 height width"]
    scenes: Scenes
    spoiled: Float[Tensor, " videos"]

    def __len__(self) -> int:
        """Number of videos."""
        return len(self.spoiled)


@torch.no_grad()
def draw_videos(vae: AutoencoderKL, num_videos: int, generator: Generator) -> Videos:
    """Draw uncurated videos and 25 % clean ones; 45 % are decoded from noisy latents, grainy or harsh."""
    uncurated = draw_scenes(num_videos, generator)
    scenes = merged(uncurated, cleaned(uncurated), torch.rand(num_videos, generator=generator) < 0.25)
    return spoil(vae, scenes, render(scenes), generator)


@torch.no_grad()
def spoil(
    vae: AutoencoderKL,
    scenes: Scenes,
    frames: Float[Tensor, "videos frames 3 height width"],
    generator: Generator,
) -> Videos:
    """Spoil 45 % of the videos of these scenes: decoded from noisy latents, grainy or harsh."""
    frames = frames.clone()
    kind, amount = torch.rand(2, len(scenes), generator=generator)
    decoded, grainy, harsh = kind < 0.25, (kind >= 0.25) & (kind < 0.35), (kind >= 0.35) & (kind < 0.45)
    frames[decoded] = redecoded(vae, frames[decoded], amount[decoded], generator)
    share = amount.view(-1, 1, 1, 1, 1)
    frames[grainy] += 0.25 * share[grainy] * torch.randn(frames[grainy].shape, generator=generator)
    frames[harsh] = (frames[harsh] - 0.5) * (1 + 3 * share[harsh]) + 0.5
    spoiled = torch.where(decoded | grainy | harsh, amount, 0.0)
    return Videos((frames.clamp(0, 1) * 255).round().byte(), scenes, spoiled)
