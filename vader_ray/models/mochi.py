"""Mochi 1 (``genmo/mochi-1-preview``): videos from text."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from vader_ray.models.base import VideoModel
from vader_ray.models.core.decoders import Decoder, DecoderOptions, WholeClip
from vader_ray.models.core.layer_stream import Layer, Layers, LayerStream, unfold_channels
from vader_ray.types import Latents


class MochiStream(LayerStream):
    """Mochi's decoder, ``diffusers.models.autoencoders.autoencoder_kl_mochi.MochiDecoder3D``, as a stream.

    Its convolutions see two earlier frames, and its normalisation is one of single frames. The library itself
    decodes a clip in one piece: its own chunks pad with zeros where the whole clip is padded with its border.
    """

    def build(self, layers: Layers, latents: Latents) -> None:
        decoder = self.vae.decoder
        x = layers.framewise(decoder.conv_in, layers.latents)
        x = _residual_blocks(layers, decoder.block_in.resnets, x)
        for block in decoder.up_blocks:
            x = _residual_blocks(layers, block.resnets, x)
            x = layers.expansion(partial(_upsampling, block), x, factor=block.temporal_expansion)
        x = _residual_blocks(layers, decoder.block_out.resnets, x)
        x = layers.framewise(lambda frames: _linear(decoder.proj_out, decoder.nonlinearity(frames)), x)
        layers.expansion(lambda frames: frames, x, factor=1, dropped=self._frames_per_latent - 1)


def _residual_blocks(layers: Layers, blocks: Iterable[Any], source: Layer) -> Layer:
    for block in blocks:
        x = source
        for norm, module in ((block.norm1, block.conv1), (block.norm2, block.conv2)):
            activation = nn.Sequential(norm, block.nonlinearity)
            run = partial(_convolution, module)
            x = layers.convolution(run, x, before=module.time_pad, activation=activation)
        source = layers.framewise(Tensor.add, x, source)
    return source


def _convolution(module: Any, frames: Tensor) -> Tensor:
    """Convolve as a ``CogVideoXCausalConv3d`` does, without its padding in time."""
    if module.pad_mode == "replicate":
        *space, _, _ = module.time_causal_padding
        frames = functional.pad(frames, (*space, 0, 0), mode="replicate")
    result: Tensor = module.conv(frames)
    return result


def _upsampling(block: Any, frames: Tensor) -> Tensor:
    space = block.spatial_expansion
    return unfold_channels(_linear(block.proj, frames), block.temporal_expansion, space, space)


def _linear(projection: nn.Linear, frames: Tensor) -> Tensor:
    projected: Tensor = projection(frames.movedim(1, -1)).movedim(-1, 1)
    return projected


class MochiModel(VideoModel):
    """Flow-predicting transformer, T5 text encoder, causal autoencoder."""

    pipeline_classes = ("MochiPipeline",)
    stock_loader = True
    embeddings = (
        "prompt_embeds",
        "prompt_attention_mask",
        "negative_prompt_embeds",
        "negative_prompt_attention_mask",
    )

    def build_decoder(self, options: DecoderOptions) -> Decoder:
        vae, ratio = self.pipe.vae, self.pipe.vae_temporal_scale_factor
        if vae.use_tiling:
            return WholeClip(vae, ratio)
        return MochiStream(vae, ratio, options.chunk_size, offload_cache=options.offload_cache)

    def vae_scale_factors(self) -> tuple[int, int]:
        return self.pipe.vae_temporal_scale_factor, self.pipe.vae_spatial_scale_factor
