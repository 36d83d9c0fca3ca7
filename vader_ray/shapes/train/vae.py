"""Trains the autoencoder of `text_to_video`; every other part that looks at decoded latents needs it
first."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Generator, Tensor

from vader_ray.shapes.data import SIZE, draw_scenes, render
from vader_ray.shapes.train._loop import fit, replaced
from vader_ray.shapes.train._places import around_objects

LATENT_CHANNELS = 4


def build_vae() -> AutoencoderKL:
    """An untrained AutoencoderKL from 3x64x64 frames to 4x8x8 latents, as far apart as Stable Diffusion's."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 24, 32, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=SIZE,
        scaling_factor=1.0,
    )


def train_vae(out: Path, *, num_steps: int = 4000, batch_frames: int = 16) -> None:
    """Writes `out/text_to_video/vae`, its latents normalised per channel, its decoder trained on for a
    while."""
    torch.manual_seed(0)
    generator = Generator().manual_seed(0)
    scenes = draw_scenes(1500, generator)
    frames = (render(scenes).flatten(0, 1) * 255).byte()
    weights = torch.where(around_objects(scenes, SIZE), 3.0, 1.0).flatten(0, 1)[:, None]
    vae = build_vae()

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(frames), (batch_frames,), generator=generator)
        target = frames[chosen].float() / 127.5 - 1
        posterior = vae.encode(target).latent_dist
        decoded = vae.decode(posterior.sample(generator)).sample
        loss: Tensor = picture_loss(decoded, target, weights[chosen]) + 5e-7 * posterior.kl().mean()
        return loss

    average = fit(vae, loss_of, num_steps=num_steps, learning_rate=2e-3, ema_decay=0.999)
    assert isinstance(average, AutoencoderKL)
    normalise(average, render(draw_scenes(200, generator)).flatten(0, 1))
    average = train_decoder(average, frames, weights, generator)
    with replaced(out / "text_to_video" / "vae") as folder:
        average.save_pretrained(folder)


def train_decoder(
    vae: AutoencoderKL,
    frames: Tensor,
    weights: Tensor,
    generator: Generator,
    *,
    num_steps: int = 2500,
    batch_frames: int = 16,
) -> AutoencoderKL:
    """`vae` with a decoder that forgives the small errors a denoiser leaves in the latents; the encoder
    stays."""
    vae.requires_grad_(False)
    vae.decoder.requires_grad_(True)
    vae.post_quant_conv.requires_grad_(True)

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(frames), (batch_frames,), generator=generator)
        target = frames[chosen].float() / 127.5 - 1
        with torch.no_grad():
            latents = vae.encode(target).latent_dist.mean
        noise = torch.randn(latents.shape, generator=generator)
        share = 0.1 * torch.rand(batch_frames, 1, 1, 1, generator=generator)
        return picture_loss(vae.decode(latents + share * noise).sample, target, weights[chosen])

    trained = fit(vae, loss_of, num_steps=num_steps, learning_rate=1.5e-3, ema_decay=0.998, weight_decay=0.0)
    assert isinstance(trained, AutoencoderKL)
    return trained.requires_grad_(False)


def picture_loss(decoded: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """How far `decoded` frames are from their `target`, in value and along edges; `weights` are of pixels."""
    error = decoded - target
    weights = torch.ones_like(target) if weights is None else weights.expand_as(target)
    edges = (weights[..., 1:] * error.diff(dim=-1).abs()).mean() + (
        weights[..., 1:, :] * error.diff(dim=-2).abs()
    ).mean()
    return (weights * error.abs()).mean() + 2 * (weights * error.square()).mean() + edges


@torch.no_grad()
def normalise(vae: AutoencoderKL, frames: Float[Tensor, "frames 3 height width"]) -> None:
    """Folds the mean and deviation of each latent channel into the 1x1 convolutions around the latents.

    The pipeline knows one `scaling_factor` for all channels; so the latents themselves become N(0, 1).
    """
    latents = vae.encode(frames * 2 - 1).latent_dist.mean
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    ahead, behind = vae.quant_conv, vae.post_quant_conv
    behind.bias += behind.weight[:, :, 0, 0] @ mean
    behind.weight *= deviation[None, :, None, None]
    ahead.bias[:LATENT_CHANNELS] -= mean
    ahead.bias[:LATENT_CHANNELS] /= deviation
    ahead.weight[:LATENT_CHANNELS] /= deviation[:, None, None, None]
    ahead.bias[LATENT_CHANNELS:] -= 2 * deviation.log()


@torch.no_grad()
def encode(vae: AutoencoderKL, frames: Tensor) -> Float[Tensor, "videos channels frames height width"]:
    """Mean latents of `frames`, which are (videos, frames, 3, height, width) in [0, 1]."""
    parts = [vae.encode(part.flatten(0, 1) * 2 - 1).latent_dist.mean for part in torch.split(frames, 32)]
    return torch.cat(parts).view(*frames.shape[:2], LATENT_CHANNELS, 8, 8).transpose(1, 2)


def decode(vae: AutoencoderKL, latents: Tensor) -> Float[Tensor, "videos frames 3 height width"]:
    """Frames in [0, 1] of `latents`, which are (videos, channels, frames, height, width)."""
    frames: Tensor = vae.decode(latents.transpose(1, 2).flatten(0, 1)).sample
    return (frames / 2 + 0.5).clamp(0, 1).view(latents.shape[0], latents.shape[2], 3, SIZE, SIZE)
