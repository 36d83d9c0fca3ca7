"""Wan 2.1 and 2.2 (``Wan-AI/Wan2.1-T2V-1.3B-Diffusers``, ``Wan2.2-T2V-A14B-Diffusers``, ``Wan2.2-TI2V-5B-Diffusers`` …)."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import WanImageToVideoPipeline, WanPipeline
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from torch import Tensor, nn

from vader_ray.config import ModelConfig, SamplingConfig
from vader_ray.models.base import PipelineModel
from vader_ray.models.core.conditioning import Conditioning
from vader_ray.models.core.decoders import CausalStream
from vader_ray.models.core.loading import load_pipeline, published_class
from vader_ray.models.core.loop_hooks import LoopHook
from vader_ray.types import Latents


class Stream(CausalStream):
    """One latent frame at a time; its cache is a list with one entry per causal convolution."""

    def portions(self, num_latent_frames: int) -> list[tuple[int, int]]:
        return [(1, 1)] + [(1, self.vae.config.scale_factor_temporal)] * (num_latent_frames - 1)

    def prepare(self, latents: Latents) -> Latents:
        prepared: Latents = self.vae.post_quant_conv(latents)  # of one frame alone it differs in the last bit
        return prepared

    def decode_portion(self, latents: Latents, cache: Any) -> tuple[Tensor, Any]:
        first = cache is None
        if first:
            self.vae.clear_cache()
        cache = list(self.vae._feat_map if first else cache)  # the decoder writes into its list
        decoded = self.vae.decoder(latents, feat_cache=cache, feat_idx=[0], first_chunk=first)
        if self.vae.config.patch_size is not None:
            decoded = unpatchify(decoded, patch_size=self.vae.config.patch_size)
        return decoded, cache


class Model(PipelineModel):
    """Flow-predicting transformer (2.2-A14B: one for the noisy steps, one for the rest), umT5 text encoder.

    An image-to-video checkpoint is recognised by its pipeline, which takes one image for all its videos: there videos are
    sampled one by one. Adapters are saved in diffusers' format; that of the second transformer loads by
    ``load_lora_weights(FOLDER / "transformer_2", load_into_transformer_2=True)``.
    """

    stock_loader = True

    @classmethod
    def load(
        cls, model: ModelConfig, sampling: SamplingConfig, *, chunk_size: int, device: torch.device
    ) -> Model:
        """The pretrained pipeline on a device; ``chunk_size`` is not used, the decoder goes by latent frames."""
        kind = published_class(model, WanPipeline, WanImageToVideoPipeline)
        pipe = load_pipeline(kind, model, sampling, device)
        built = cls(pipe, sampling, Stream(pipe.vae, offload_cache=model.offload_decoder_cache))
        built.is_image_to_video = kind is WanImageToVideoPipeline
        built.batched = not built.is_image_to_video
        if pipe.transformer is not None and pipe.transformer.config.image_dim is not None:
            built.adapter_targets = (
                *cls.adapter_targets,
                "add_k_proj",
                "add_v_proj",
            )  # the stock loader expects them
        return built

    def denoisers(self) -> dict[str, nn.Module]:
        found = {name: getattr(self.pipe, name) for name in ("transformer", "transformer_2")}
        return {name: denoiser for name, denoiser in found.items() if denoiser is not None}

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
