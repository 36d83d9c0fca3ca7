"""The 3D UNet of VideoCrafter2 (arXiv 2401.09047, 2211.13221), with its published names.

An image UNet with temporal convolutions after every residual block and a temporal transformer after every
spatial one, conditioned on the noise level and the frame rate. Inside, frames are folded into the batch:
``batch·frames channels height width``. All sizes can be read from the shapes of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count

import torch
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.unets.unet_3d_condition import UNet3DConditionOutput
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

NUM_FIRST_HEADS = 8
"""Heads of the temporal transformer after the first convolution; its width divided by this is the size of
every head."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """Sizes of a denoiser."""

    in_channels: int
    out_channels: int
    channels: int
    multipliers: tuple[int, ...]
    """Channels of each level, in multiples of ``channels``; each level halves height and width."""
    attention: tuple[bool, ...]
    """Whether each level has transformers."""
    num_res_blocks: int
    """Residual blocks of each level."""
    head_size: int
    """Features of each attention head."""
    context_size: int
    """Features of each token of the prompt."""

    @property
    def embedding_size(self) -> int:
        """Features of the embedded noise level and frame rate."""
        return 4 * self.channels

    @classmethod
    def read(cls, weights: Mapping[str, Tensor]) -> Architecture:
        """Return the sizes of a checkpoint, from the shapes of its weights.

        Raises:
            KeyError: a weight that every such denoiser has is missing.
        """
        levels = _read_levels(weights)
        channels, in_channels = weights["input_blocks.0.0.weight"].shape[:2]
        return cls(
            in_channels=in_channels,
            out_channels=len(weights["out.2.bias"]),
            channels=channels,
            multipliers=tuple(width // channels for (width, _), *_ in levels),
            attention=tuple(attended for (_, attended), *_ in levels),
            num_res_blocks=len(levels[0]),
            head_size=len(weights["init_attn.0.proj_in.bias"]) // NUM_FIRST_HEADS,
            context_size=weights["middle_block.1.transformer_blocks.0.attn2.to_k.weight"].shape[1],
        )


def _read_levels(weights: Mapping[str, Tensor]) -> list[list[tuple[int, bool]]]:
    """Return width and presence of transformers of each residual block of the encoder, level by level."""
    levels: list[list[tuple[int, bool]]] = [[]]
    for index in count(1):
        block = f"input_blocks.{index}"
        if f"{block}.0.op.bias" in weights:
            levels.append([])
        elif f"{block}.0.in_layers.2.bias" in weights:
            levels[-1].append(
                (len(weights[f"{block}.0.in_layers.2.bias"]), f"{block}.1.norm.bias" in weights)
            )
        elif all(levels):
            return levels
        else:
            raise KeyError(f"{block}.0.in_layers.2.bias")
    raise AssertionError("count() never ends")


@dataclass(frozen=True, slots=True)
class _Conditions:
    """Inputs shared by all layers."""

    batch: int
    """Number of videos."""
    embedding: Tensor
    """Embedded noise level and frame rate, ``batch embedding``."""
    context: Tensor
    """Embedded prompt, ``batch tokens context``."""


class UNet(nn.Module):
    """Network that predicts the noise in latents ``batch channels frames height width``."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = size = architecture
        self.time_embed = _embedder(size)
        self.fps_embedding = _embedder(size)
        first = nn.Conv2d(size.in_channels, size.channels, 3, padding=1)
        self.input_blocks = nn.ModuleList([_Block(first)])
        self.init_attn = _Block(_TemporalTransformer(size.channels, size.head_size, NUM_FIRST_HEADS))
        width, skipped, last = size.channels, [size.channels], len(size.multipliers) - 1
        for level, multiplier in enumerate(size.multipliers):
            for _ in range(size.num_res_blocks):
                self.input_blocks.append(_residual(size, level, width))
                width = multiplier * size.channels
                skipped.append(width)
            if level != last:
                self.input_blocks.append(_Block(_Downsample(width)))
                skipped.append(width)
        self.middle_block = _Block(
            _ResBlock(size, width, width), *_transformers(size, width), _ResBlock(size, width, width)
        )
        self.output_blocks = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(size.multipliers))):
            for position in range(size.num_res_blocks + 1):
                block = _residual(size, level, width + skipped.pop())
                width = multiplier * size.channels
                if level and position == size.num_res_blocks:
                    block.append(_Upsample(width))
                self.output_blocks.append(block)
        self.out = nn.Sequential(
            nn.GroupNorm(32, width), nn.SiLU(), nn.Conv2d(width, size.out_channels, 3, padding=1)
        )

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the frozen weights, in which everything but the adapter is computed."""
        return self.out[2].weight.dtype  # type: ignore[return-value]

    @property
    def device(self) -> torch.device:
        return self.out[2].weight.device  # type: ignore[return-value]

    def forward(
        self,
        sample: Float[Tensor, "batch channels frames height width"],
        timestep: Int[Tensor, ""],
        encoder_hidden_states: Float[Tensor, "batch tokens context"],
        fps: int,
        return_dict: bool = True,
    ) -> UNet3DConditionOutput | tuple[Tensor]:
        """Predict the noise, in the dtype of ``sample``.

        Args:
            sample: noisy latents; height and width are multiples of 2 ** (number of levels − 1).
            timestep: noise level, 0 to 999, the same for all videos.
            encoder_hidden_states: embedded prompts.
            fps: frame rate of the video in frames per second.
            return_dict: return a dataclass, as diffusers' denoisers do, instead of a tuple.
        """
        batch = len(sample)
        conditions = _Conditions(
            batch, self._embed(timestep, fps, batch), encoder_hidden_states.to(self.dtype)
        )
        x, skipped = sample.to(self.dtype).transpose(1, 2).flatten(0, 1), list[Tensor]()
        for index, block in enumerate(self.input_blocks):
            x = block(x, conditions)
            if index == 0:
                x = self.init_attn(x, conditions)
            skipped.append(x)
        x = self.middle_block(x, conditions)
        for block in self.output_blocks:
            x = block(torch.cat([x, skipped.pop()], dim=1), conditions)
        noise = self.out(x).unflatten(0, (batch, -1)).transpose(1, 2).to(sample.dtype)
        return UNet3DConditionOutput(sample=noise) if return_dict else (noise,)

    def _embed(self, timestep: Tensor, fps: int, batch: int) -> Tensor:
        """Embed noise level and frame rate; the sinusoids are float32 in every precision of the denoiser."""
        known = torch.stack([timestep, torch.full_like(timestep, fps)]).to(self.device)
        sinusoids = get_timestep_embedding(
            known, self.architecture.channels, flip_sin_to_cos=True, downscale_freq_shift=0
        )
        time, rate = sinusoids.to(self.dtype)
        embedding: Tensor = self.time_embed(time) + self.fps_embedding(rate)
        return embedding.expand(batch, -1)


def _embedder(size: Architecture) -> nn.Sequential:
    wide = size.embedding_size
    return nn.Sequential(nn.Linear(size.channels, wide), nn.SiLU(), nn.Linear(wide, wide))


def _residual(size: Architecture, level: int, width: int) -> _Block:
    """Return a residual block, followed by transformers if the level has them."""
    out = size.multipliers[level] * size.channels
    return _Block(_ResBlock(size, width, out), *(_transformers(size, out) if size.attention[level] else ()))


def _transformers(size: Architecture, width: int) -> tuple[nn.Module, nn.Module]:
    heads = width // size.head_size
    spatial = _SpatialTransformer(width, size.head_size, heads, size.context_size)
    return spatial, _TemporalTransformer(width, size.head_size, heads, linear=True)


class _Block(nn.ModuleList):
    """Layers in sequence; only those of `CONDITIONED` take the conditions."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(layers)

    def forward(self, x: Tensor, conditions: _Conditions) -> Tensor:
        for layer in self:
            x = layer(x, conditions) if isinstance(layer, CONDITIONED) else layer(x)
        return x


class _Downsample(nn.Module):
    """Convolution that halves height and width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        halved: Tensor = self.op(x)
        return halved


class _Upsample(nn.Module):
    """Nearest-neighbour doubling of height and width, and a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        doubled: Tensor = self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return doubled


class _ResBlock(nn.Module):
    """Convolutions of single frames, conditioned on noise level and frame rate, then temporal convolutions.

    Identities replace the dropout of the published network, which is off in eval mode, so that the names of
    weights agree.
    """

    def __init__(self, size: Architecture, width: int, out: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(32, width), nn.SiLU(), nn.Conv2d(width, out, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(size.embedding_size, out))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, out), nn.SiLU(), nn.Identity(), nn.Conv2d(out, out, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if width == out else nn.Conv2d(width, out, 1)
        self.temopral_conv = _TemporalConvolutions(out)  # the published spelling

    def forward(self, x: Tensor, conditions: _Conditions) -> Tensor:
        frames = len(x) // conditions.batch
        shift = self.emb_layers(conditions.embedding).repeat_interleave(frames, dim=0)
        x = self.skip_connection(x) + self.out_layers(self.in_layers(x) + shift[:, :, None, None])
        return _fold(self.temopral_conv(_unfold(x, conditions.batch)))


class _TemporalConvolutions(nn.Module):
    """Four convolutions in sequence, each over three frames, added to their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(*_temporal_convolution(width))
        for name in ("conv2", "conv3", "conv4"):
            norm, activation, convolution = _temporal_convolution(width)
            self.add_module(name, nn.Sequential(norm, activation, nn.Identity(), convolution))

    def forward(self, x: Float[Tensor, "batch channels frames height width"]) -> Tensor:
        change = x
        for convolution in self.children():
            change = convolution(change)
        return x + change


def _temporal_convolution(width: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    return nn.GroupNorm(32, width), nn.SiLU(), nn.Conv3d(width, width, (3, 1, 1), padding=(1, 0, 0))


class _SpatialTransformer(nn.Module):
    """Attention between the pixels of one frame, and to the prompt."""

    def __init__(self, width: int, head_size: int, heads: int, context_size: int) -> None:
        super().__init__()
        inner = heads * head_size
        self.norm = nn.GroupNorm(32, width, eps=1e-6)
        self.proj_in = nn.Linear(width, inner)
        self.transformer_blocks = nn.ModuleList([_TransformerBlock(inner, heads, context_size)])
        self.proj_out = nn.Linear(inner, width)

    def forward(self, x: Tensor, conditions: _Conditions) -> Tensor:
        pixels = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))
        for block in self.transformer_blocks:
            pixels = block(pixels, conditions.context)
        added: Tensor = x + self.proj_out(pixels).transpose(1, 2).unflatten(2, x.shape[2:])
        return added


class _TemporalTransformer(nn.Module):
    """Attention between the frames of one pixel, twice."""

    def __init__(self, width: int, head_size: int, heads: int, linear: bool = False) -> None:
        super().__init__()
        inner = heads * head_size
        self.norm = nn.GroupNorm(32, width, eps=1e-6)
        self.proj_in = nn.Linear(width, inner) if linear else _PointwiseConv(width, inner)
        self.transformer_blocks = nn.ModuleList([_TransformerBlock(inner, heads, inner)])
        self.proj_out = nn.Linear(inner, width) if linear else _PointwiseConv(inner, width)

    def forward(self, x: Tensor, conditions: _Conditions) -> Tensor:
        # batch height width frames channels
        video = self.norm(_unfold(x, conditions.batch)).permute(0, 3, 4, 2, 1)
        pixels = self.proj_in(video.flatten(0, 2))
        for block in self.transformer_blocks:
            pixels = block(pixels, None)
        return x + _fold(self.proj_out(pixels).view(video.shape).permute(0, 4, 3, 1, 2))


class _PointwiseConv(nn.Conv1d):
    """Linear layer whose weights are published as a convolution with a kernel of one element."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__(width, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = functional.linear(x, self.weight[:, :, 0], self.bias)
        return projected


class _TransformerBlock(nn.Module):
    """Self-attention, attention to a context (self-attention again if there is none), feed-forward."""

    def __init__(self, width: int, heads: int, context_size: int) -> None:
        super().__init__()
        self.attn1 = _Attention(width, heads, width)
        self.ff = _FeedForward(width)
        self.attn2 = _Attention(width, heads, context_size)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        x = x + self.attn1(self.norm1(x), None)
        x = x + self.attn2(self.norm2(x), context)
        fed: Tensor = x + self.ff(self.norm3(x))
        return fed


class _Attention(nn.Module):
    """Multi-head attention."""

    def __init__(self, width: int, heads: int, context_size: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_size, width, bias=False)
        self.to_v = nn.Linear(context_size, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x: Float[Tensor, "rows tokens width"], context: Tensor | None) -> Tensor:
        """Attend to the context, or to ``x`` if there is none.

        All rows of ``x`` of one video share a row of the context.
        """
        seen = x if context is None else context
        query, key, value = (
            self._split(layer(of)) for layer, of in ((self.to_q, x), (self.to_k, seen), (self.to_v, seen))
        )
        if context is not None:
            key, value = (tensor.repeat_interleave(len(x) // len(context), dim=0) for tensor in (key, value))
        attended: Tensor = functional.scaled_dot_product_attention(query, key, value)
        mixed: Tensor = self.to_out(attended.transpose(1, 2).flatten(2))
        return mixed

    def _split(self, x: Tensor) -> Tensor:
        apart: Tensor = x.unflatten(2, (self.heads, -1)).transpose(1, 2)
        return apart


class _FeedForward(nn.Module):
    """Two linear layers with a gated activation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(_GatedLinear(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        fed: Tensor = self.net(x)
        return fed


class _GatedLinear(nn.Module):
    """GEGLU: a linear layer multiplied by the GELU of another."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * out)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        gated: Tensor = value * functional.gelu(gate)
        return gated


CONDITIONED = (_ResBlock, _SpatialTransformer, _TemporalTransformer)
"""Layers that take the conditions. They produce nearly all activations, so they are also the blocks that are
recomputed."""


def _unfold(x: Tensor, batch: int) -> Tensor:
    """Rearrange ``batch·frames channels height width`` to ``batch channels frames height width``."""
    video: Tensor = x.unflatten(0, (batch, -1)).transpose(1, 2)
    return video


def _fold(x: Tensor) -> Tensor:
    """Invert `_unfold`."""
    return x.transpose(1, 2).flatten(0, 1)
