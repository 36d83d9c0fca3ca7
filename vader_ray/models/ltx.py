"""LTX-Video (``Lightricks/LTX-Video`` and its 0.9 successors in diffusers' layout).

Videos from text, or from an image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vader_ray.models.base import VideoModel
from vader_ray.models.core.conditioning import Conditioning
from vader_ray.models.core.decoders import Decoder, DecoderOptions, WholeClip
from vader_ray.models.core.frame_images import frames_of
from vader_ray.models.core.layer_stream import Layer, Layers, LayerStream, unfold_channels
from vader_ray.models.core.loop_hooks import OUTSIDE_STEPS, LoopHook
from vader_ray.models.core.memory_optimizations import recompute
from vader_ray.types import Latents, Noise

DECODE_TIMESTEP, DECODE_NOISE_SCALE = 0.05, 0.025
"""Noise level that decoders of 0.9.1 and later remove, and amount of noise added before; the values of the
library's documentation. The noise is a function of the video's seed."""


class LTXStream(LayerStream):
    """LTX's decoder, ``diffusers.models.autoencoders.autoencoder_kl_ltx.LTXVideoDecoder3d``, as a stream.

    Its convolutions see one frame on either side, or two earlier ones if the decoder is causal; its
    normalisation is one of single pixels. The noise that the decoder of 0.9.1 adds between its layers has
    fixed seeds here: the library draws it anew in every call, so that a video could not be decoded twice.
    """

    def build(self, layers: Layers, latents: Latents) -> None:
        decoder, timestep = self.vae.decoder, None
        for level in _noise_level(self.vae):
            timestep = level.to(latents).expand(len(latents)) * decoder.timestep_scale_multiplier
        x = _convolution(layers, decoder.conv_in, layers.latents)
        x = _residual_blocks(layers, decoder.mid_block, x, timestep)
        for block in decoder.up_blocks:
            if block.conv_in is not None:
                x = _residual_block(layers, block.conv_in, x, timestep)
            for upsampler in block.upsamplers or ():
                x = _upsampler(layers, upsampler, x)
            x = _residual_blocks(layers, block, x, timestep)
        shift, scale = _modulation(decoder.scale_shift_table, _embedded(decoder, timestep))
        activation = partial(_activation, decoder.norm_out, decoder.conv_act, shift, scale)
        x = _convolution(layers, decoder.conv_out, x, activation)
        layers.expansion(partial(_unpatchify, decoder), x, factor=decoder.patch_size_t)


def _noise_level(vae: Any) -> list[Tensor]:
    """Return the second argument of the decoder, if it takes one."""
    return [torch.tensor([DECODE_TIMESTEP])] if vae.config.timestep_conditioning else []


def _residual_blocks(layers: Layers, block: Any, source: Layer, timestep: Tensor | None) -> Layer:
    embedded = _embedded(block, timestep)
    for resnet in block.resnets:
        source = _residual_block(layers, resnet, source, embedded)
    return source


def _residual_block(layers: Layers, block: Any, source: Layer, embedded: Tensor | None) -> Layer:
    shift1, scale1, shift2, scale2 = _modulation(block.scale_shift_table, embedded, 4)
    first = partial(_activation, block.norm1, block.nonlinearity, shift1, scale1)
    x = _convolution(layers, block.conv1, source, first, block.per_channel_scale1)
    second = partial(_activation, block.norm2, block.nonlinearity, shift2, scale2)
    x = _convolution(layers, block.conv2, x, second, block.per_channel_scale2)
    if block.conv_shortcut is not None:
        source = layers.framewise(
            partial(_activation, block.norm3, block.conv_shortcut.conv, None, None), source
        )
    return layers.framewise(Tensor.add, x, source)


def _upsampler(layers: Layers, upsampler: Any, source: Layer) -> Layer:
    convolved, stride = _convolution(layers, upsampler.conv, source), upsampler.stride

    def run(frames: Tensor, before: Tensor | None = None) -> Tensor:
        unfolded = unfold_channels(frames, *stride)
        if before is None:
            return unfolded
        residual = unfold_channels(before, *stride)
        return unfolded + residual.repeat(1, unfolded.shape[1] // residual.shape[1], 1, 1, 1)

    inputs = (convolved, source) if upsampler.residual else (convolved,)
    return layers.expansion(run, *inputs, factor=stride[0], dropped=stride[0] - 1)


def _convolution(
    layers: Layers,
    module: Any,
    source: Layer,
    activation: Callable[[Tensor], Tensor] = nn.Identity(),
    noise_scale: Tensor | None = None,
) -> Layer:
    """Add a ``LTXVideoCausalConv3d`` after its activation, and noise that is the same in every frame."""
    seed, others = len(layers), module.kernel_size[0] - 1
    before = others if module.is_causal else others // 2

    def run(frames: Tensor) -> Tensor:
        result: Tensor = module.conv(frames)
        if noise_scale is None:
            return result
        noise = torch.randn(result.shape[-2:], generator=torch.Generator().manual_seed(seed))
        return result + (noise.to(result) * noise_scale)[:, None]

    return layers.convolution(run, source, before=before, after=others - before, activation=activation)


def _embedded(block: Any, timestep: Tensor | None) -> Tensor | None:
    """Return a block's embedding of the noise level, ``videos channels 1 1 1``."""
    if timestep is None or block.time_embedder is None:
        return timestep
    embedded: Tensor = block.time_embedder(
        timestep=timestep,
        resolution=None,
        aspect_ratio=None,
        batch_size=len(timestep),
        hidden_dtype=timestep.dtype,
    )
    return embedded[:, :, None, None, None]


def _modulation(table: Tensor | None, embedded: Tensor | None, count: int = 2) -> Sequence[Tensor | None]:
    """Return shifts and scales after normalisations; None for a decoder that takes no noise level."""
    if table is None or embedded is None:
        return (None,) * count
    both: Tensor = embedded.unflatten(1, (count, -1)) + table[None, ..., None, None, None]
    return both.unbind(1)


def _activation(
    norm: Callable[[Tensor], Tensor],
    nonlinearity: Callable[[Tensor], Tensor],
    shift: Tensor | None,
    scale: Tensor | None,
    frames: Tensor,
) -> Tensor:
    normed = norm(frames.movedim(1, -1)).movedim(-1, 1)
    if shift is not None and scale is not None:
        normed = normed * (1 + scale) + shift
    return nonlinearity(normed)


def _unpatchify(decoder: Any, frames: Tensor) -> Tensor:
    """Move channels to pixels; their order is channels, time, width, height."""
    time, space = decoder.patch_size_t, decoder.patch_size
    by_height = frames.unflatten(1, (-1, time, space, space)).transpose(3, 4).flatten(1, 4)
    return unfold_channels(by_height, time, space, space)


class LTXModel(VideoModel):
    """Flow-predicting transformer over packed tokens, T5 text encoder."""

    pipeline_classes = ("LTXPipeline", "LTXImageToVideoPipeline")
    image_pipeline_classes = ("LTXImageToVideoPipeline",)
    stock_loader = True
    splits_tokens = True
    embeddings = (
        "prompt_embeds",
        "prompt_attention_mask",
        "negative_prompt_embeds",
        "negative_prompt_attention_mask",
    )

    def build_decoder(self, options: DecoderOptions) -> Decoder:
        vae, ratio = self.pipe.vae, self.pipe.vae_temporal_compression_ratio
        if vae.use_tiling or vae.use_framewise_decoding:
            return WholeClip(vae, ratio, *_noise_level(vae))
        return LTXStream(vae, ratio, options.chunk_size, offload_cache=options.offload_cache)

    def vae_scale_factors(self) -> tuple[int, int]:
        return self.pipe.vae_temporal_compression_ratio, self.pipe.vae_spatial_compression_ratio

    def num_tokens(self) -> int:
        _, frames, height, width = self.latent_shape()
        space, time = self.pipe.transformer_spatial_patch_size, self.pipe.transformer_temporal_patch_size
        tokens: int = (frames // time) * (height // space) * (width // space)
        return tokens

    def pack_latents(self, noise: Noise) -> Tensor:
        packed: Tensor = self.pipe._pack_latents(
            noise, self.pipe.transformer_spatial_patch_size, self.pipe.transformer_temporal_patch_size
        )
        return packed

    def _run_pipeline(
        self, latents: Tensor, conditioning: Conditioning, hook: LoopHook, **changes: float
    ) -> Latents:
        if self.is_image_to_video:
            latents = self._with_first_frames(latents, conditioning.tensors["image"], hook)
        return super()._run_pipeline(latents, conditioning, hook, **changes)

    def _with_first_frames(self, noise: Tensor, images: Any, hook: LoopHook) -> Tensor:
        """Return packed noise whose first latent frame is that of the encoded images.

        The loop does it only for noise that it draws itself.
        """
        pipe, (channels, _, _, _), sampling = self.pipe, self.latent_shape(), self.sampling
        device, (height, width), frames = noise.device, (sampling.height, sampling.width), frames_of(images)
        pixels = (
            pipe.video_processor.preprocess(images, height=height, width=width)
            if frames is None
            else frames * 2 - 1
        )

        def encode(pixels: Tensor) -> tuple[Tensor, Tensor]:
            encoded: tuple[Tensor, Tensor] = pipe.prepare_latents(
                pixels.to(device, pipe.vae.dtype), len(noise), channels, height, width, sampling.num_frames,
                noise.dtype, device, hook.generators(OUTSIDE_STEPS, len(noise)),
            )  # fmt: skip
            return encoded

        started, is_given = recompute(encode, pixels)
        return torch.where(is_given[..., None] > 0, started, noise)

    def pipeline_kwargs(self) -> dict[str, Any]:
        noise = {"decode_timestep": DECODE_TIMESTEP, "decode_noise_scale": DECODE_NOISE_SCALE}
        return super().pipeline_kwargs() | noise
