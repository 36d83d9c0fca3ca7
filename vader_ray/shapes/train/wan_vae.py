"""Trains the causal autoencoder of `wan`: nine frames become five latent frames."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderKLWan
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn.functional import mse_loss

from vader_ray.shapes.data import SIZE, draw_scenes, render
from vader_ray.shapes.train._loop import fit, replaced
from vader_ray.shapes.train._places import around_objects
from vader_ray.shapes.train.vae import encode as encode_frames
from vader_ray.shapes.train.vae import picture_loss

NUM_FRAMES = 9
LATENT_CHANNELS = 8


def build_vae() -> AutoencoderKLWan:
    """An untrained AutoencoderKLWan from 3x9x64x64 videos to 8x5x8x8 latents, built as that of Wan 2.2,
    compressing less."""
    return AutoencoderKLWan(
        base_dim=32,
        decoder_base_dim=32,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[True],
        is_residual=True,
        in_channels=48,
        out_channels=48,
        patch_size=4,
        scale_factor_temporal=2,
        scale_factor_spatial=8,
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
    )


def train_wan_vae(
    out: Path,
    *,
    num_steps: int = 1600,
    decoder_steps: int = 3600,
    batch_videos: int = 4,
    num_videos: int = 2000,
) -> None:
    """Write `out/wan/vae`, and update it while training; its latents are those of `out/text_to_video`,
    two frames as one.

    Trained on pictures alone, it confuses stars and circles after 900 steps. With given latents, encoder and
    decoder have separate losses; both are trained first, then the decoder alone, with a larger weight around
    the shape.
    """
    torch.manual_seed(2)
    generator = Generator().manual_seed(2)
    scenes = draw_scenes(num_videos, generator, num_frames=NUM_FRAMES)
    videos = render(scenes)
    older = AutoencoderKL.from_pretrained(out / "text_to_video" / "vae", torch_dtype=torch.float32)
    goals = torch.cat([paired(older, part) for part in videos.split(100)])
    pixels = videos.mul(255).round().byte().transpose(1, 2).contiguous()
    weights = torch.where(around_objects(scenes, SIZE), 6.0, 1.0)[:, None]
    vae = build_vae()

    def draw() -> tuple[Tensor, Tensor, Tensor]:
        """Draw videos; return their indices, pixels, and the decoded noisy latents.

        The noise makes the decoder tolerate the denoiser's errors.
        """
        chosen = torch.randint(num_videos, (batch_videos,), generator=generator)
        share = 0.15 * torch.rand(batch_videos, 1, 1, 1, 1, generator=generator)
        noise = torch.randn(goals[chosen].shape, generator=generator)
        return chosen, pixels[chosen].float() / 127.5 - 1, vae.decode(goals[chosen] + share * noise).sample

    def loss_of_both(step: int) -> Tensor:
        chosen, target, decoded = draw()
        return picture_loss(decoded, target) + mse_loss(vae.encode(target).latent_dist.mean, goals[chosen])

    def loss_of_decoder(step: int) -> Tensor:
        chosen, target, decoded = draw()
        return picture_loss(decoded, target, weights[chosen])

    def save(step: int, average: nn.Module) -> None:
        assert isinstance(average, AutoencoderKLWan)
        with replaced(out / "wan" / "vae") as folder:
            average.save_pretrained(folder)

    average = fit(vae, loss_of_both, num_steps=num_steps, learning_rate=3e-3, ema_decay=0.99, every=save)
    vae.load_state_dict(average.state_dict())
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    fit(
        vae,
        loss_of_decoder,
        num_steps=decoder_steps,
        learning_rate=2e-3,
        ema_decay=0.995,
        weight_decay=0.0,
        every=save,
    )


def paired(
    older: AutoencoderKL, frames: Tensor
) -> Float[Tensor, "videos channels latent_frames height width"]:
    """Latents of single `frames`, each two of them as the channels of one latent frame; the first stands
    there twice."""
    latents = encode_frames(older, torch.cat([frames[:, :1], frames], 1))
    return torch.cat([latents[:, :, ::2], latents[:, :, 1::2]], 1)


@torch.no_grad()
def encode(
    vae: AutoencoderKLWan, frames: Tensor
) -> Float[Tensor, "videos channels latent_frames height width"]:
    """Mean latents of `frames`, which are (videos, frames, 3, height, width) in [0, 1]."""
    return torch.cat([vae.encode(part.transpose(1, 2) * 2 - 1).latent_dist.mean for part in frames.split(32)])


@torch.no_grad()
def decode(vae: AutoencoderKLWan, latents: Tensor) -> Float[Tensor, "videos frames 3 height width"]:
    """Frames in [0, 1] of `latents`."""
    frames: Tensor = vae.decode(latents).sample
    return (frames / 2 + 0.5).clamp(0, 1).transpose(1, 2)
