"""Wan 2.1 and 2.2: videos from text, or from an image.

For example ``Wan-AI/Wan2.1-T2V-1.3B-Diffusers``, ``Wan2.2-T2V-A14B-Diffusers`` and
``Wan2.2-TI2V-5B-Diffusers``.
"""

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
from torch import Tensor, nn

from vader_ray.config import SamplingConfig
from vader_ray.models.base import VideoModel
from vader_ray.models.core.conditioning import Conditioning
from vader_ray.models.core.decoders import CausalStream, DecoderOptions
from vader_ray.models.core.loop_hooks import LoopHook
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


class WanModel(VideoModel):
    """Flow-predicting transformer, umT5 text encoder, causal autoencoder.

    Wan 2.2 A14B has two transformers, one for the noisy steps and one for the others.

    The image-to-video pipeline takes one image for all its videos, so videos are sampled one by one there.
    Adapters are saved in diffusers' format; ``load_lora_weights(FOLDER / "transformer_2",
    load_into_transformer_2=True)`` loads that of the second transformer.
    """

    pipeline_classes = ("WanPipeline", "WanImageToVideoPipeline")
    image_pipeline_classes = ("WanImageToVideoPipeline",)
    stock_loader = True
    splits_tokens = True

    def __init__(self, pipe: Any, sampling: SamplingConfig, decoder_options: DecoderOptions) -> None:
        super().__init__(pipe, sampling, decoder_options)
        self.batched = not self.is_image_to_video
        if pipe.transformer is not None and pipe.transformer.config.image_dim is not None:
            # diffusers' loader expects an adapter on the projections of the image, too
            self.adapter_targets = (*self.adapter_targets, "add_k_proj", "add_v_proj")

    def denoisers(self) -> dict[str, nn.Module]:
        found = {name: getattr(self.pipe, name) for name in ("transformer", "transformer_2")}
        return {name: denoiser for name, denoiser in found.items() if denoiser is not None}

    def build_decoder(self, options: DecoderOptions) -> WanStream:
        return WanStream(self.pipe.vae, offload_cache=options.offload_cache)

    def vae_scale_factors(self) -> tuple[int, int]:
        return self.pipe.vae_scale_factor_temporal, self.pipe.vae_scale_factor_spatial

    def latent_channels(self) -> int:
        channels: int = self.pipe.vae.config.z_dim
        return channels

    def _run_pipeline(
        self, latents: Tensor, conditioning: Conditioning, hook: LoopHook, **changes: float
    ) -> Latents:
        tensors = dict(conditioning.tensors)
        if self.is_image_to_video:
            tensors["image"] = tensors["image"][0]
        return super()._run_pipeline(latents, Conditioning(tensors), hook, **changes)
