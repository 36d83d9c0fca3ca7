"""Decode videos in chunks of frames; the pixels equal those of the library's own ``vae.decode``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.utils._pytree import tree_map_only

from vader_ray.config import ModelConfig
from vader_ray.models.core.memory_optimizations import apply_activation_checkpointing, decoder_blocks
from vader_ray.types import Frames, Latents, VideoDecoder

ALL_FRAMES = 2**31
"""``decode_chunk_size`` of a pipeline's call, so that the loop passes all latents to one ``vae.decode``."""


@dataclass(frozen=True, slots=True)
class DecoderOptions:
    """How an autoencoder decodes; each kind of decoder reads what concerns it."""

    chunk_size: int = 1
    """Frames at once, for decoders that can choose. Exact; more frames need more memory."""
    temporal_frames: int | None = None
    """Frames that Stable Video Diffusion's decoder sees together, by default all. Changes the pixels."""
    offload_cache: bool = False
    """Keep the cache of a streamed decoder in host memory between chunks. Exact; slower, less GPU memory."""

    @classmethod
    def of(cls, model: ModelConfig, chunk_size: int) -> DecoderOptions:
        """Return the options of a recipe."""
        return cls(chunk_size, model.temporal_decoder_frames, model.offload_decoder_cache)


class Decoder(VideoDecoder):
    """Base of the decoders: an autoencoder whose blocks may be recomputed."""

    def __init__(self, vae: Any) -> None:
        self.vae = vae

    def finished(self, frames: Frames) -> Frames:
        """Return the same frames."""
        return frames

    def recompute_blocks(self) -> None:
        """From now on, compute the blocks again in the backward pass: exact, less memory. Call it once."""
        apply_activation_checkpointing(decoder_blocks(self.vae.decoder), "block")


class Framewise2D(Decoder):
    """An image autoencoder applied to each frame; any subset of the frames can be decoded exactly."""

    chunks_are_independent = True

    def __init__(self, vae: AutoencoderKL, chunk_size: int) -> None:
        super().__init__(vae)
        self._chunk_size = chunk_size

    def num_frames(self, latents: Latents) -> int:
        """Return the number of frames: one per latent frame."""
        return latents.shape[2]

    def chunks(self, latents: Latents, wanted: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the wanted frames and no others, ``chunk_size`` at a time."""
        size = self._chunk_size
        return [tuple(wanted[start : start + size]) for start in range(0, len(wanted), size)]

    def decode(self, latents: Latents, state: None, chunk: tuple[int, ...]) -> tuple[Frames, None]:
        """Decode the frames of one chunk.

        Saturated pixels have zero gradient, the derivative of the clamp.
        """
        images = latents[:, :, list(chunk)].transpose(1, 2).flatten(0, 1)
        decoded = self.vae.decode(images.to(self.vae.dtype)).sample
        return _pixels(decoded).unflatten(0, (len(latents), len(chunk))), None

    def encode(self, frames: Frames) -> Latents:
        """Encode frames to latents at the scale of sampling."""
        images = frames.flatten(0, 1).split(self._chunk_size)
        modes = [self.vae.encode((part * 2 - 1).to(self.vae.dtype)).latent_dist.mode() for part in images]
        scaling: float = self.vae.config.scaling_factor
        latents: Tensor = torch.cat(modes).unflatten(0, frames.shape[:2]).transpose(1, 2)
        return latents * scaling


class TemporalChunk(Decoder):
    """Stable Video Diffusion's decoder, which mixes the frames of a chunk and has no cache.

    So the chunks are part of the result, like the pipeline's ``decode_chunk_size``: there are seams between
    them. They start at fixed frames, whichever frames are wanted, and never cross from one video to the next.
    """

    chunks_are_independent = True

    def __init__(self, vae: Any, chunk_size: int) -> None:
        super().__init__(vae)
        self._chunk_size = chunk_size

    def num_frames(self, latents: Latents) -> int:
        """Return the number of frames: one per latent frame."""
        return latents.shape[2]

    def chunks(self, latents: Latents, wanted: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the whole chunks that contain wanted frames."""
        total, size = self.num_frames(latents), self._chunk_size
        chunks = [tuple(range(start, min(start + size, total))) for start in range(0, total, size)]
        return [chunk for chunk in chunks if not set(chunk).isdisjoint(wanted)]

    def decode(self, latents: Latents, state: None, chunk: tuple[int, ...]) -> tuple[Frames, None]:
        """Decode the frames of one chunk together."""
        images = latents[:, :, list(chunk)].transpose(1, 2).flatten(0, 1)
        decoded = self.vae.decode(images.to(self.vae.dtype), num_frames=len(chunk)).sample
        return _pixels(decoded).unflatten(0, (len(latents), len(chunk))), None


class StreamedDecoder(Decoder):
    """A decoder whose chunks follow one another and pass a cache of explicit tensors.

    Exact, and so is its gradient, which flows through the cache (a detached cache gives a wrong one).
    Decoding stops after the last wanted frame. A subclass defines `chunk_sizes` and `decode_frames`. With
    ``offload_cache`` the caches wait in host memory (pinned, if the decoder is on a GPU) for the next chunk
    and for the backward pass: exact, slower.
    """

    chunks_are_independent = False

    def __init__(self, vae: Any, *, offload_cache: bool = False) -> None:
        super().__init__(vae)
        self._offload_cache = offload_cache

    def chunk_sizes(self, num_latent_frames: int) -> list[int]:
        """Return the number of frames of each chunk, in order."""
        raise NotImplementedError

    def decode_frames(self, latents: Latents, chunk: tuple[int, ...], cache: Any) -> tuple[Tensor, Any]:
        """Decode the frames of one chunk; ``cache`` is None for the first one.

        Returns ``batch 3 frames height width`` in [−1, 1] and the cache for the next chunk.
        """
        raise NotImplementedError

    def num_frames(self, latents: Latents) -> int:
        """Return the number of frames of all chunks."""
        return sum(self.chunk_sizes(latents.shape[2]))

    def chunks(self, latents: Latents, wanted: Sequence[int]) -> list[tuple[int, ...]]:
        """Return every chunk from the first to that of the last wanted frame."""
        chunks, start = [], 0
        for frames in self.chunk_sizes(latents.shape[2]):
            if start <= max(wanted):
                chunks.append(tuple(range(start, start + frames)))
            start += frames
        return chunks

    def decode(self, latents: Latents, state: Any, chunk: tuple[int, ...]) -> tuple[Frames, Any]:
        """Decode the frames of one chunk; also returns the cache for the next."""
        cache = tree_map_only(Tensor, lambda tensor: tensor.to(latents.device, non_blocking=True), state)
        decoded, cache = self.decode_frames(latents.to(self.vae.dtype), chunk, cache)
        if self._offload_cache:  # torch pins the copy of a non-blocking transfer from a GPU
            cache = tree_map_only(Tensor, lambda tensor: tensor.to("cpu", non_blocking=True), cache)
        return _pixels(decoded).transpose(1, 2), cache


class CausalStream(StreamedDecoder):
    """A causal autoencoder that decodes a few latent frames at a time, with the library's own cache.

    For the first frame alone, only the first latent frame is decoded. A subclass defines `latent_sizes` and
    `decode_chunk`.
    """

    def latent_sizes(self, num_latent_frames: int) -> list[tuple[int, int]]:
        """Return the numbers of latent frames and of frames of each chunk, in order."""
        raise NotImplementedError

    def prepare(self, latents: Latents) -> Latents:
        """Apply the library's operations on all latents before it decodes in chunks; runs for every chunk."""
        return latents

    def decode_chunk(self, latents: Latents, cache: Any) -> tuple[Tensor, Any]:
        """Decode one chunk of latent frames; see `StreamedDecoder.decode_frames`."""
        raise NotImplementedError

    def chunk_sizes(self, num_latent_frames: int) -> list[int]:
        return [frames for _, frames in self.latent_sizes(num_latent_frames)]

    def decode_frames(self, latents: Latents, chunk: tuple[int, ...], cache: Any) -> tuple[Tensor, Any]:
        first, size = self._latent_range(latents.shape[2], chunk[0])
        return self.decode_chunk(self.prepare(latents)[:, :, first : first + size], cache)

    def _latent_range(self, num_latent_frames: int, frame: int) -> tuple[int, int]:
        """Return the first latent frame and the number of latent frames of the chunk from ``frame`` on."""
        first = start = 0
        for size, frames in self.latent_sizes(num_latent_frames):
            if start == frame:
                return first, size
            first, start = first + size, start + frames
        raise AssertionError(f"no chunk starts with frame {frame}")


class WholeClip(Decoder):
    """An autoencoder that decodes the whole clip at once, by the library's own call.

    Args:
        vae: the autoencoder.
        frames_per_latent: frames of every latent frame but the first, which is one frame.
        further: arguments of ``vae.decode`` after the latents, one value for all videos.
        one_by_one: decode each video in a call of its own.
    """

    chunks_are_independent = True

    def __init__(self, vae: Any, frames_per_latent: int, *further: Tensor, one_by_one: bool = False) -> None:
        super().__init__(vae)
        self._one_by_one = one_by_one
        self._frames_per_latent = frames_per_latent
        self._further = further

    def num_frames(self, latents: Latents) -> int:
        """Return the number of frames of the clip."""
        return 1 + (latents.shape[2] - 1) * self._frames_per_latent

    def chunks(self, latents: Latents, wanted: Sequence[int]) -> list[tuple[int, ...]]:
        """Return one chunk with all frames."""
        return [tuple(range(self.num_frames(latents)))]

    def decode(self, latents: Latents, state: None, chunk: tuple[int, ...]) -> tuple[Frames, None]:
        """Decode all frames."""
        parts = latents.to(self.vae.dtype).split(1 if self._one_by_one else len(latents))
        decoded = torch.cat([self._decode(part) for part in parts])
        return _pixels(decoded).transpose(1, 2), None

    def _decode(self, latents: Latents) -> Tensor:
        further = (tensor.to(latents).expand(len(latents)) for tensor in self._further)
        decoded: Tensor = self.vae.decode(latents, *further, return_dict=False)[0]
        return decoded


def _pixels(decoded: Tensor) -> Tensor:
    """Map the decoder's [−1, 1] to [0, 1], float32 at least."""
    decoded = decoded.to(torch.promote_types(decoded.dtype, torch.float32))
    return (decoded / 2 + 0.5).clamp(0, 1)
