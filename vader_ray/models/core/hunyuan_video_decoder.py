"""The decoder of HunyuanVideo's autoencoder, which several model families share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import (
    HunyuanVideoResnetBlockCausal3D,
    HunyuanVideoUpsampleCausal3D,
)
from torch import Tensor, nn

from vader_ray.models.core.decoders import StreamedDecoder
from vader_ray.models.core.memory_optimizations import recomputed
from vader_ray.types import Latents


class HunyuanVideoStream(StreamedDecoder):
    """HunyuanVideo's decoder, tile by tile: the library decodes overlapping tiles of five latent frames.

    Within a tile the decoder's normalisation and attention are over all frames, so a tile cannot be split in
    time. The first frames of a tile are blended with the last ones of the tile before, which are the cache.
    The backward pass computes the blocks of a tile again, or, if the library's tiles in space are switched on
    (``vae.enable_tiling()``), one such tile after another.
    """

    def recompute_blocks(self) -> None:
        """Do nothing: the backward pass always computes the blocks of a tile again."""

    def num_frames(self, latents: Latents) -> int:
        return sum(len(tile) for tile in self._tiles(latents.shape[2]))

    def chunks(self, latents: Latents, wanted: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the tiles of wanted frames, and those whose last frames are blended into these.

        Blended frames that are not wanted are left out.
        """
        chunks, next_is_blended = list[tuple[int, ...]](), False
        for tile in reversed(self._tiles(latents.shape[2])):
            if next_is_blended or not set(tile).isdisjoint(wanted):
                blended = tile[: self._num_blended] if tile[0] > 0 else ()
                next_is_blended = not set(blended).isdisjoint(wanted)
                chunks.insert(0, tile if next_is_blended else tile[len(blended) :])
        return chunks

    def decode_frames(
        self, latents: Latents, chunk: tuple[int, ...], cache: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        tiles = self._tiles(latents.shape[2])
        index = next(index for index, tile in enumerate(tiles) if chunk[0] in tile)
        first = index * self._stride // self.vae.temporal_compression_ratio
        size = latents.shape[2] if len(tiles) == 1 else 1 + self._size // self.vae.temporal_compression_ratio
        with _in_one_piece(self.vae), recomputed(_parts(self.vae)):
            decoded = self.vae.decode(latents[:, :, first : first + size]).sample
        if index > 0:
            decoded = decoded[:, :, 1:]
        if index > 0 and chunk[0] == tiles[index][0]:
            assert cache is not None
            decoded = self.vae.blend_t(cache, decoded, self._num_blended)
        start = chunk[0] - tiles[index][0]
        return decoded[:, :, start : start + len(chunk)], decoded[:, :, -self._num_blended :].clone()

    @property
    def _size(self) -> int:
        """Frames of a tile after its first one."""
        size: int = self.vae.tile_sample_min_num_frames
        return size

    @property
    def _stride(self) -> int:
        """Frames from the start of a tile to that of the next."""
        stride: int = self.vae.tile_sample_stride_num_frames
        return stride

    @property
    def _num_blended(self) -> int:
        return self._size - self._stride

    def _tiles(self, num_latent_frames: int) -> list[tuple[int, ...]]:
        """Return the frames that each tile contributes, as in the library's ``_temporal_tiled_decode``."""
        ratio = self.vae.temporal_compression_ratio
        num_frames = 1 + (num_latent_frames - 1) * ratio
        if not self.vae.use_framewise_decoding or num_latent_frames <= self._size // ratio:
            return [tuple(range(num_frames))]
        starts = [0, *range(self._stride + 1, num_frames, self._stride)]
        return [
            tuple(range(start, stop)) for start, stop in zip(starts, [*starts[1:], num_frames], strict=True)
        ]


@contextmanager
def _in_one_piece(vae: Any) -> Iterator[None]:
    """Switch off the library's own tiles in time inside a ``with`` block."""
    before, vae.use_framewise_decoding = vae.use_framewise_decoding, False
    try:
        yield
    finally:
        vae.use_framewise_decoding = before


def _parts(vae: Any) -> list[nn.Module]:
    """Return the parts of the decoder that are computed again one by one."""
    if vae.use_tiling:
        return [vae.decoder]
    kinds = (HunyuanVideoResnetBlockCausal3D, HunyuanVideoUpsampleCausal3D)  # attention would keep its mask
    return [module for module in vae.decoder.modules() if isinstance(module, kinds)]
