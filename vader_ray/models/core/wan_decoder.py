"""The decoder of Wan's autoencoder, which several model families share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanAttentionBlock,
    WanResample,
    WanResidualBlock,
    unpatchify,
)
from torch import Tensor

from vader_ray.models.core.decoders import CausalStream
from vader_ray.models.core.memory_optimizations import apply_activation_checkpointing, recompute
from vader_ray.types import Latents


class WanStream(CausalStream):
    """Chunks of one latent frame; the cache is a list with one entry per causal convolution."""

    def recompute_blocks(self) -> None:
        for part in self.vae.decoder.modules():
            if isinstance(part, WanResidualBlock | WanResample):
                part.forward = _recomputed(part.forward)
            elif isinstance(part, WanAttentionBlock):
                apply_activation_checkpointing([part], "block")

    def latent_sizes(self, num_latent_frames: int) -> list[tuple[int, int]]:
        return [(1, 1)] + [(1, self.vae.config.scale_factor_temporal)] * (num_latent_frames - 1)

    def prepare(self, latents: Latents) -> Latents:
        prepared: Latents = self.vae.post_quant_conv(
            latents
        )  # frame by frame it would differ in the last bit
        return prepared

    def decode_chunk(self, latents: Latents, cache: Any) -> tuple[Tensor, Any]:
        first = cache is None
        if first:
            self.vae.clear_cache()
        cache = list(self.vae._feat_map if first else cache)  # the decoder writes into its list
        decoded = self.vae.decoder(latents, feat_cache=cache, feat_idx=[0], first_chunk=first)
        if self.vae.config.patch_size is not None:
            decoded = unpatchify(decoded, patch_size=self.vae.config.patch_size)
        return decoded, cache


def _recomputed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compute a block again in the backward pass; it writes its entries of the cache into a list."""

    def without_side_effects(frames: Tensor, cache: Sequence[Any], first: int) -> tuple[Tensor, list[Any]]:
        own, position = list(cache), [first]
        result = forward(frames, feat_cache=own, feat_idx=position)
        return result, own[first : position[0]]

    def run(frames: Tensor, feat_cache: list[Any], feat_idx: list[int]) -> Tensor:
        if not torch.is_grad_enabled():
            return forward(frames, feat_cache=feat_cache, feat_idx=feat_idx)
        first = feat_idx[0]
        result, written = recompute(without_side_effects, frames, feat_cache, first)
        feat_idx[0] = first + len(written)
        feat_cache[first : feat_idx[0]] = written
        return result

    return run
