"""Stable Diffusion's image autoencoder by its sizes, for checkpoints without diffusers' configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from diffusers import AutoencoderKL
from torch import Tensor


def meta_autoencoder(
    widths: Sequence[int], num_blocks: int, latent_channels: int, scaling_factor: float
) -> AutoencoderKL:
    """Return an image autoencoder on the meta device.

    Args:
        widths: channels of each level; each but the last halves height and width.
        num_blocks: residual blocks of each level of the encoder.
        latent_channels: channels of the latents.
        scaling_factor: factor of the latents in the denoiser's input.
    """
    with torch.device("meta"):
        return AutoencoderKL(
            block_out_channels=tuple(widths),
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            layers_per_block=num_blocks,
            latent_channels=latent_channels,
            scaling_factor=scaling_factor,
        )


def level_widths(weights: Mapping[str, Tensor], name: str) -> list[int]:
    """Return the output channels of each level of a network.

    Args:
        weights: weights of the network by name.
        name: of a weight or bias of each level, with ``{}`` for the level's number.

    Raises:
        KeyError: the first level has none.
    """
    widths = [len(weights[name.format(0)])]
    while (found := weights.get(name.format(len(widths)))) is not None:
        widths.append(len(found))
    return widths
