"""Decode latents chunk by chunk, with a graph that keeps no activations of the decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.checkpoint import checkpoint

from vader_ray.types import Frames, Latents, VideoDecoder


def decode(latents: Latents, decoder: VideoDecoder, wanted: Sequence[int]) -> tuple[Frames, list[int]]:
    """Decode some frames of each video; return the frames and their indices in the video.

    The backward pass decodes each chunk again. The decoder may add frames to those that are wanted.
    """
    chunks, indices, state = [], list[int](), None
    for chunk in decoder.chunks(latents, wanted):
        frames, state = checkpoint(
            decoder.decode, latents, state, chunk, use_reentrant=False, preserve_rng_state=False
        )
        chunks.append(frames)
        indices.extend(chunk)
    return torch.cat(chunks, dim=1), indices


def decode_all(latents: Latents, decoder: VideoDecoder) -> Frames:
    """Decode every frame of each video."""
    return decode(latents, decoder, range(decoder.num_frames(latents)))[0]
