"""Decoders of video autoencoders, portion by portion. Each gives the pixels of the library's own ``vae.decode``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from vader_ray.models.core.loop_hooks import map_tensors
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
        return _pixels(decoded).unflatten(0, (len(latents), len(chunk))), None

    def encode(self, frames: Frames) -> Latents:
        """The latents of sampling (scaled, as the denoiser knows them) that decode to the frames, nearly."""
        images = frames.flatten(0, 1).split(self._chunk_size)
        modes = [self._vae.encode((part * 2 - 1).to(self._vae.dtype)).latent_dist.mode() for part in images]
        scaling: float = self._vae.config.scaling_factor
        latents: Tensor = torch.cat(modes).unflatten(0, frames.shape[:2]).transpose(1, 2)
        return latents * scaling


class TemporalChunk:
    """Stable Video Diffusion's decoder, which mixes the frames that it gets together and keeps nothing between portions.

    So the portions are part of the result, like the pipeline's ``decode_chunk_size``: seams show between them. They start
    at fixed frames, whatever frames are wanted, and never reach from one video into the next.
    """

    def __init__(self, vae: Any, together: int) -> None:
        self._vae = vae
        self._together = together

    def num_frames(self, latents: Latents) -> int:
        """One frame per latent frame."""
        return latents.shape[2]

    def chunks(self, latents: Latents, wanted: Sequence[int]) -> list[tuple[int, ...]]:
        """StepContext portions that contain wanted frames."""
        total, size = self.num_frames(latents), self._together
        portions = [tuple(range(start, min(start + size, total))) for start in range(0, total, size)]
        return [portion for portion in portions if not set(portion).isdisjoint(wanted)]

    def decode(self, latents: Latents, state: None, chunk: tuple[int, ...]) -> tuple[Frames, None]:
        """The frames of one portion, decoded together."""
        images = latents[:, :, list(chunk)].transpose(1, 2).flatten(0, 1)
        decoded = self._vae.decode(images.to(self._vae.dtype), num_frames=len(chunk)).sample
        return _pixels(decoded).unflatten(0, (len(latents), len(chunk))), None


class CausalStream:
    """A causal autoencoder, a few latent frames at a time, with the decoder's cache passed on as explicit tensors.

    Exact, and so is its gradient, which flows through the cache (cutting it there is wrong). Decoding ends with the last
    wanted frame: of a first frame alone, only the first latent frame is decoded. A family gives its portions and
    `decode_portion`. With ``offload_cache`` caches wait in host memory (pinned, for a GPU) for the next portion and for
    the backward pass: exact, slower.
    """

    def __init__(self, vae: Any, *, offload_cache: bool = False) -> None:
        self.vae = vae
        self._offload_cache = offload_cache

    def portions(self, num_latent_frames: int) -> list[tuple[int, int]]:
        """Latent frames and frames of each portion, in order."""
        raise NotImplementedError

    def prepare(self, latents: Latents) -> Latents:
        """What the library does with all latents before it streams them; cheap, as it is done again for every portion."""
        return latents

    def decode_portion(self, latents: Latents, cache: Any) -> tuple[Tensor, Any]:
        """The decoder's output, ``batch 3 frames height width`` in [−1, 1], and its next cache; None is the first."""
        raise NotImplementedError

    def num_frames(self, latents: Latents) -> int:
        """What the portions add up to."""
        return sum(frames for _, frames in self.portions(latents.shape[2]))

    def chunks(self, latents: Latents, wanted: Sequence[int]) -> list[tuple[int, ...]]:
        """Every portion from the first up to that of the last wanted frame."""
        chunks, start = [], 0
        for _, frames in self.portions(latents.shape[2]):
            if start <= max(wanted):
                chunks.append(tuple(range(start, start + frames)))
            start += frames
        return chunks

    def decode(self, latents: Latents, state: Any, chunk: tuple[int, ...]) -> tuple[Frames, Any]:
        """The frames of one portion and the cache for the next."""
        first, size = self._place(latents.shape[2], chunk[0])
        cache = map_tensors(state, lambda tensor: tensor.to(latents.device, non_blocking=True))
        prepared = self.prepare(latents.to(self.vae.dtype))
        decoded, cache = self.decode_portion(prepared[:, :, first : first + size], cache)
        if self._offload_cache:  # torch pins the copy of a non-blocking transfer from a GPU
            cache = map_tensors(cache, lambda tensor: tensor.to("cpu", non_blocking=True))
        return _pixels(decoded).transpose(1, 2), cache

    def _place(self, num_latent_frames: int, frame: int) -> tuple[int, int]:
        """First latent frame and number of latent frames of the portion that starts with a frame."""
        first = start = 0
        for size, frames in self.portions(num_latent_frames):
            if start == frame:
                return first, size
            first, start = first + size, start + frames
        raise AssertionError(f"no portion starts with frame {frame}")


class WholeClip:
    """An autoencoder that must see the clip at once: exact, and its backward pass holds the whole decoder."""

    def __init__(self, vae: Any, frames_per_latent: int, *further: Tensor) -> None:
        self._vae = vae
        self._frames_per_latent = frames_per_latent
        self._further = further

    def num_frames(self, latents: Latents) -> int:
        """One frame for the first latent frame and ``frames_per_latent`` for every other."""
        return 1 + (latents.shape[2] - 1) * self._frames_per_latent

    def chunks(self, latents: Latents, wanted: Sequence[int]) -> list[tuple[int, ...]]:
        """All frames."""
        return [tuple(range(self.num_frames(latents)))]

    def decode(self, latents: Latents, state: None, chunk: tuple[int, ...]) -> tuple[Frames, None]:
        """All frames in [0, 1]."""
        further = (
            tensor.to(latents.device, self._vae.dtype).expand(len(latents)) for tensor in self._further
        )
        decoded = self._vae.decode(latents.to(self._vae.dtype), *further, return_dict=False)[0]
        return _pixels(decoded).transpose(1, 2), None


def _pixels(decoded: Tensor) -> Tensor:
    """From the decoder's [−1, 1] to [0, 1], at least float32."""
    decoded = decoded.to(torch.promote_types(decoded.dtype, torch.float32))
    return (decoded / 2 + 0.5).clamp(0, 1)
