"""Decode latents chunk by chunk, with a graph that keeps no activations of the decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.checkpoint import checkpoint

from vader_ray.types import Frames, Latents, VideoDecoder


def decode(latents: Latents, decoder: VideoDecoder, wanted: Sequence[int]) -> tuple[Frames, list[int]]:
    """Decode some frames of each video; return the frames and their indices in the video.

    The backward pass decodes each chunk again but the last one, with which it begins: the graph of that chunk
    is kept. The decoder may add frames to those that are wanted.
    """
    frames, indices, state = list[Frames](), list[int](), None
    *others, last = decoder.chunks(latents, wanted)
    for chunk in others:
        part, state = checkpoint(
            decoder.decode, latents, state, chunk, use_reentrant=False, preserve_rng_state=False
        )
        frames.append(part)
        indices.extend(chunk)
    part, _ = decoder.decode(latents, state, last)
    return torch.cat([*frames, part], dim=1), [*indices, *last]


def decode_all(latents: Latents, decoder: VideoDecoder) -> Frames:
    """Decode every frame of each video; the frames are those of the finished video."""
    return decoder.finished(decode(latents, decoder, range(decoder.num_frames(latents)))[0])
