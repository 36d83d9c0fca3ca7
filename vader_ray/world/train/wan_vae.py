"""Trains the causal autoencoder of `wan`: nine frames become three latent frames."""

from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from jaxtyping import Float
from torch import Generator, Tensor, nn

from vader_ray.world.data import draw_scenes, render
from vader_ray.world.train._loop import fit, replaced
from vader_ray.world.train.vae import picture_loss

NUM_FRAMES = 9
LATENT_CHANNELS = 24


def build_vae() -> AutoencoderKLWan:
    """An untrained AutoencoderKLWan from 3x9x32x32 videos to 24x3x4x4 latents, built as that of Wan 2.2."""
    return AutoencoderKLWan(
        base_dim=24,
        decoder_base_dim=24,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_temporal=4,
        scale_factor_spatial=8,
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
    )


def train_wan_vae(out: Path, *, num_steps: int = 2000, batch_videos: int = 4, num_videos: int = 2000) -> None:
    """Writes `out/wan/vae`, its latents' mean and deviation in its config, and keeps it fresh while training.

    The decoder sees noisy latents, so that it forgives the small errors that a denoiser leaves.
    """
    torch.manual_seed(2)
    generator = Generator().manual_seed(2)
    videos = render(draw_scenes(num_videos, generator, num_frames=NUM_FRAMES)).mul(255).byte().transpose(1, 2).contiguous()
    vae = build_vae()

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(num_videos, (batch_videos,), generator=generator)
        target = videos[chosen].float() / 127.5 - 1
        posterior = vae.encode(target).latent_dist
        latents = posterior.sample(generator)
        share = 0.12 * torch.rand(batch_videos, 1, 1, 1, 1, generator=generator) * posterior.mean.detach().std()
        decoded = vae.decode(latents + share * torch.randn(latents.shape, generator=generator)).sample
        loss: Tensor = picture_loss(decoded, target) + 1e-6 * posterior.kl().mean()
        return loss

    def save(step: int, average: nn.Module) -> None:
        assert isinstance(average, AutoencoderKLWan)
        note_statistics(average, videos[:64].float() / 127.5 - 1)
        with replaced(out / "wan" / "vae") as folder:
            average.save_pretrained(folder)

    fit(vae, loss_of, num_steps=num_steps, learning_rate=2e-3, ema_decay=0.995, every=save)


@torch.no_grad()
def note_statistics(vae: AutoencoderKLWan, videos: Float[Tensor, "videos 3 frames height width"]) -> None:
    """Writes mean and deviation of each latent channel into the config, where the pipeline looks for them."""
    latents = vae.encode(videos).latent_dist.mean.transpose(0, 1).flatten(1)
    vae.register_to_config(latents_mean=latents.mean(1).tolist(), latents_std=latents.std(1).tolist())


def _statistics(vae: AutoencoderKLWan) -> list[Tensor]:
    return [torch.tensor(vae.config[name]).view(-1, 1, 1, 1) for name in ("latents_mean", "latents_std")]


@torch.no_grad()
def encode(vae: AutoencoderKLWan, frames: Tensor) -> Float[Tensor, "videos channels latent_frames height width"]:
    """Mean latents, normalised, of `frames`, which are (videos, frames, 3, height, width) in [0, 1]."""
    mean, deviation = _statistics(vae)
    parts = [vae.encode(part.transpose(1, 2) * 2 - 1).latent_dist.mean for part in frames.split(32)]
    latents: Tensor = (torch.cat(parts) - mean) / deviation
    return latents


@torch.no_grad()
def decode(vae: AutoencoderKLWan, latents: Tensor) -> Float[Tensor, "videos frames 3 height width"]:
    """Frames in [0, 1] of normalised `latents`."""
    mean, deviation = _statistics(vae)
    frames: Tensor = vae.decode(latents * deviation + mean).sample
    return (frames / 2 + 0.5).clamp(0, 1).transpose(1, 2)
