"""Rated single frames for the rewards: well filmed, badly filmed, and spoiled in the ways that hacked videos
are."""

from dataclasses import dataclass, fields

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float, Int, UInt8
from torch import Generator, Tensor

from vader_ray.shapes.data import Scenes, aesthetic_of, cleaned, draw_scenes, render


@dataclass(frozen=True)
class Pictures:
    """Frames with the scene and moment each one shows, a rating of 1 to 10, and how far each was spoiled,
    from 0 to 1."""

    frames: UInt8[Tensor, "pictures 3 height width"]
    scenes: Scenes
    moment: Int[Tensor, " pictures"]
    rating: Float[Tensor, " pictures"]
    spoiled: Float[Tensor, " pictures"]

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.rating)


@torch.no_grad()
def draw_pictures(
    vae: AutoencoderKL, num_scenes: int, generator: Generator, *, per_scene: int = 3
) -> Pictures:
    """`per_scene` frames of each of `num_scenes` truthfully captioned scenes, a quarter filmed well, 30 %
    spoiled."""
    uncurated = draw_scenes(num_scenes, generator)
    scenes = merged(uncurated, cleaned(uncurated), torch.rand(num_scenes, generator=generator) < 0.25)
    source = torch.arange(num_scenes).repeat_interleave(per_scene)
    chosen = torch.rand(num_scenes, 8, generator=generator).argsort(1)[:, :per_scene].flatten()
    frames = render(scenes)[source, chosen]
    noise = torch.rand(len(frames), generator=generator)
    amount = torch.rand(len(frames), generator=generator)
    spoiled = torch.where(noise < 0.3, amount, 0.0)
    decoded = noise < 0.16
    frames[decoded] = _decode_noisy(vae, frames[decoded], amount[decoded], generator)
    grainy = (noise >= 0.16) & (noise < 0.23)
    grain = torch.randn(frames[grainy].shape, generator=generator)
    frames[grainy] += 0.25 * amount[grainy, None, None, None] * grain
    harsh = (noise >= 0.23) & (noise < 0.3)
    frames[harsh] = (frames[harsh] - 0.5) * (1 + 3 * amount[harsh, None, None, None]) + 0.5
    rating = aesthetic_of(scenes)[source]
    rating = 1 + (rating - 1) * (1 - spoiled**0.5) + 0.3 * torch.randn(len(frames), generator=generator)
    return Pictures((frames.clamp(0, 1) * 255).round().byte(), scenes[source], chosen, rating, spoiled)


def merged(ours: Scenes, theirs: Scenes, use_theirs: Tensor) -> Scenes:
    """Scene by scene, `theirs` where asked, with the truth as caption in either case."""
    parts = {}
    for field in fields(Scenes):
        mine, other = getattr(ours, field.name), getattr(theirs, field.name)
        where = use_theirs.view(-1, *[1] * (mine.dim() - 1))
        parts[field.name] = other if field.name.startswith("said_") else torch.where(where, other, mine)
    return Scenes(**parts)


def _decode_noisy(vae: AutoencoderKL, frames: Tensor, amount: Tensor, generator: Generator) -> Tensor:
    """Decode the frames' latents after adding noise; an `amount` of 1 leaves only noise."""
    decoded = []
    for part, share in zip(torch.split(frames, 64), torch.split(amount, 64), strict=True):
        latents = vae.encode(part * 2 - 1).latent_dist.mean
        share = share[:, None, None, None]
        noise = torch.randn(latents.shape, generator=generator)
        decoded.append(vae.decode((1 - share**2).sqrt() * latents + share * noise).sample / 2 + 0.5)
    return torch.cat(decoded)


def grainy(frames: Tensor, generator: Generator) -> Tensor:
    """Frames of 8 bits as numbers from 0 to 1 with a little noise, which take a gradient."""
    pixels = frames.float() / 255
    return (pixels + 4 / 255 * torch.randn(pixels.shape, generator=generator)).requires_grad_()


def pushed(frames: Tensor, loss: Tensor, *, step: float) -> Tensor:
    """Frames moved by one signed gradient step that raises `loss`.

    Training on them (fast adversarial training, Wong et al. 2020) gives rewards whose gradients a person
    recognises.
    """
    (gradient,) = torch.autograd.grad(loss, frames)
    return (frames + step * gradient.sign()).clamp(0, 1).detach()
