"""Trains the autoencoder of `svd`: single frames in, videos out, the decoder's temporal layers seeing all
frames."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn.functional import mse_loss

from vader_ray.shapes.data import NUM_FRAMES, SIZE, draw_scenes, render
from vader_ray.shapes.train._loop import fit, replaced
from vader_ray.shapes.train.vae import picture_loss

LATENT_CHANNELS = 4


def build_vae() -> AutoencoderKLTemporalDecoder:
    """Return an untrained autoencoder of 3x64x64 frames and 4x8x8 latents, like Stable Video Diffusion's.

    Its normalisations have 32 groups. With 32 channels at full size each group would be one channel, and the
    last normalisation would remove the frame's brightness; hence 64 channels.
    """
    return AutoencoderKLTemporalDecoder(
        block_out_channels=(64, 32, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        sample_size=SIZE,
        scaling_factor=1.0,
    )


def train_svd_vae(out: Path, *, num_steps: int = 600, batch_videos: int = 2, num_videos: int = 1500) -> None:
    """Writes `out/svd/vae`, grown from the autoencoder of `out/text_to_video`, whose latents it keeps."""
    torch.manual_seed(7)
    generator = Generator().manual_seed(7)
    videos = (render(draw_scenes(num_videos, generator)) * 255).byte()
    older = AutoencoderKL.from_pretrained(
        out / "text_to_video" / "vae", torch_dtype=torch.float32
    ).requires_grad_(False)
    vae = build_vae()
    take_over(vae, older)

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(num_videos, (batch_videos,), generator=generator)
        target = videos[chosen].flatten(0, 1).float() / 127.5 - 1
        latents = vae.encode(target).latent_dist.mean
        share = 0.1 * torch.rand(batch_videos, 1, 1, 1, generator=generator).repeat_interleave(NUM_FRAMES, 0)
        noise = torch.randn(latents.shape, generator=generator)
        decoded = vae.decode(latents + share * noise, num_frames=NUM_FRAMES).sample
        return picture_loss(decoded, target) + mse_loss(latents, older.encode(target).latent_dist.mean)

    def save(step: int, average: nn.Module) -> None:
        assert isinstance(average, AutoencoderKLTemporalDecoder)
        with replaced(out / "svd" / "vae") as folder:
            average.save_pretrained(folder)

    fit(vae, loss_of, num_steps=num_steps, learning_rate=1.5e-3, ema_decay=0.99, every=save)


@torch.no_grad()
def take_over(vae: AutoencoderKLTemporalDecoder, older: AutoencoderKL) -> None:
    """Starts `vae` from an autoencoder of single frames that is narrower at full size; temporal layers
    change nothing yet.

    Groups of the normalisations are smaller than the older ones, and the decoder's last middle layer is
    missing: it is a start.
    """
    known = older.state_dict()
    for name, weight in vae.state_dict().items():
        value = known.get(name.replace(".spatial_res_block", ""))
        if value is not None:
            if weight.dim() > 1:
                weight[: len(value), value.shape[1] :] = 0
            weight[tuple(slice(size) for size in value.shape)] = value
        elif "temporal_res_block.conv2" in name:
            weight.zero_()
    behind, mixed = vae.decoder.conv_in, older.post_quant_conv
    behind.bias += behind.weight.sum((2, 3)) @ mixed.bias
    behind.weight.copy_(torch.einsum("oihw,ij->ojhw", behind.weight, mixed.weight[:, :, 0, 0]))
    nn.init.zeros_(vae.decoder.time_conv_out.bias)
    nn.init.dirac_(vae.decoder.time_conv_out.weight)


@torch.no_grad()
def encode(
    vae: AutoencoderKLTemporalDecoder, frames: Tensor
) -> Float[Tensor, "videos frames channels height width"]:
    """Mean latents of `frames`, which are (videos, frames, 3, height, width) in [0, 1]."""
    parts = [vae.encode(part.flatten(0, 1) * 2 - 1).latent_dist.mean for part in frames.split(32)]
    latents: Tensor = torch.cat(parts).unflatten(0, frames.shape[:2])
    return latents


@torch.no_grad()
def decode(
    vae: AutoencoderKLTemporalDecoder, latents: Tensor
) -> Float[Tensor, "videos frames 3 height width"]:
    """Frames in [0, 1] of `latents`, which are (videos, frames, channels, height, width)."""
    frames: Tensor = vae.decode(latents.flatten(0, 1), num_frames=latents.shape[1]).sample
    frames = (frames / 2 + 0.5).clamp(0, 1).unflatten(0, latents.shape[:2])
    return frames
