"""The decoder of Open-Sora 1.2's autoencoder, a few frames at a time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from torch import Tensor

from vader_ray.models.core.decoders import StreamedDecoder
from vader_ray.models.core.memory_optimizations import apply_activation_checkpointing, decoder_blocks
from vader_ray.models.opensora.vae import CLIP_FRAMES, CLIP_LATENTS, ResBlock, VideoAutoencoder
from vader_ray.types import Frames, Latents


class OpenSoraStream(StreamedDecoder):
    """Decodes the wanted frames and no others, from the latents of their clips.

    The autoencoder in time decodes a whole clip, whose frames are normalised together. The latents of the
    clip's single frames are the cache; the image autoencoder, which has most of the work and the memory,
    decodes ``chunk_size`` of them at a time.

    Args:
        vae: the autoencoder.
        num_frames: frames of the video, which does not follow from the number of latent frames.
        chunk_size: frames that the image autoencoder decodes at once.
        offload_cache: see `StreamedDecoder`.
    """

    vae: VideoAutoencoder

    def __init__(
        self, vae: VideoAutoencoder, num_frames: int, chunk_size: int, *, offload_cache: bool = False
    ) -> None:
        super().__init__(vae, offload_cache=offload_cache)
        self._num_frames, self._chunk_size = num_frames, chunk_size

    def recompute_blocks(self) -> None:
        temporal = [part for part in self.vae.temporal_vae.decoder.modules() if isinstance(part, ResBlock)]
        spatial = decoder_blocks(self.vae.images.decoder)
        apply_activation_checkpointing([*temporal, *spatial], "block")

    def num_frames(self, latents: Latents) -> int:
        return self._num_frames

    def chunks(self, latents: Latents, wanted: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the wanted frames, at most ``chunk_size`` of one clip at a time."""
        size = self._chunk_size
        clips = [
            list(frames) for _, frames in groupby(sorted(set(wanted)), lambda frame: frame // CLIP_FRAMES)
        ]
        return [tuple(clip[start : start + size]) for clip in clips for start in range(0, len(clip), size)]

    def encode(self, frames: Frames) -> Latents:
        """Encode frames to latents at the scale of sampling."""
        return self.vae.encode((frames * 2 - 1).transpose(1, 2).to(self.vae.dtype))

    def decode_frames(
        self, latents: Latents, chunk: tuple[int, ...], cache: tuple[int, Tensor] | None
    ) -> tuple[Tensor, tuple[int, Tensor]]:
        clip = chunk[0] // CLIP_FRAMES
        first = clip * CLIP_FRAMES
        if cache is None or cache[0] != clip:
            part = latents[:, :, clip * CLIP_LATENTS : (clip + 1) * CLIP_LATENTS]
            cache = clip, self.vae.decode_clip(part, min(CLIP_FRAMES, self._num_frames - first))
        chosen = cache[1][:, :, [frame - first for frame in chunk]]
        return self.vae.decode_frames(chosen), cache
