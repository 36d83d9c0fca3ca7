"""Decoders of video autoencoders, portion by portion."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL

from vader_ray.types import Frames, Latents


class Framewise2D:
    """An image autoencoder applied to each frame: any subset of frames can be decoded, exactly and without state."""

    def __init__(self, vae: AutoencoderKL, chunk_size: int) -> None:
        self._vae = vae
        self._chunk_size = chunk_size

    def num_frames(self, latents: Latents) -> int:
        """One frame per latent frame."""
        return latents.shape[2]

    def chunks(self, latents: Latents, wanted: Sequence[int]) -> list[tuple[int, ...]]:
        """The wanted frames and no other, ``chunk_size`` at a time."""
        size = self._chunk_size
        return [tuple(wanted[start : start + size]) for start in range(0, len(wanted), size)]

    def decode(self, latents: Latents, state: None, chunk: tuple[int, ...]) -> tuple[Frames, None]:
        """The frames of one portion in [0, 1]; saturated pixels have zero gradient, the derivative of the clamp."""
        images = latents[:, :, list(chunk)].transpose(1, 2).flatten(0, 1)
        decoded = self._vae.decode(images.to(self._vae.dtype)).sample
        decoded = decoded.to(torch.promote_types(decoded.dtype, torch.float32))
        frames = (decoded / 2 + 0.5).clamp(0, 1)
        return frames.unflatten(0, (len(latents), len(chunk))), None
