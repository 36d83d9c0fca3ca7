"""STDiT3, the denoiser of Open-Sora 1.2 (hpcaitech/Open-Sora at v1.2.0), with its published names.

A transformer whose blocks attend in turn to the patches of one frame and to the frames of one patch, each
followed by attention to the prompt (arXiv 2412.20404). It is conditioned on the noise level and the frame
rate by shifts and scales, and on the size of the video by the distance between its positions. All sizes can
be read from the shapes of a checkpoint.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from diffusers.models.embeddings import get_timestep_embedding
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

BASE_SIDE = 512
"""Side in pixels of a square video whose neighbouring patches are one unit of position apart."""
NUM_FREQUENCIES = 256
"""Sinusoids of the noise level and of the frame rate."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """Sizes of a denoiser."""

    in_channels: int
    out_channels: int
    """Channels of the last layer: the velocity, and a variance that no sampling uses."""
    width: int
    """Features of each patch."""
    depth: int
    """Number of blocks in space, and of blocks in time."""
    num_heads: int
    mlp_width: int
    """Features of the hidden layer of each feed-forward network."""
    patch: tuple[int, int, int]
    """Frames, height and width of a patch in latents."""
    context_size: int
    """Features of each token of the prompt."""
    num_tokens: int
    """Tokens of a prompt, with padding."""

    @classmethod
    def read(cls, weights: Mapping[str, Tensor]) -> Architecture:
        """Return the sizes of a checkpoint, from the shapes of its weights.

        Raises:
            KeyError: a weight that every such denoiser has is missing.
        """
        width, in_channels, *patch = weights["x_embedder.proj.weight"].shape
        num_tokens, context_size = weights["y_embedder.y_embedding"].shape
        first = "spatial_blocks.0."
        return cls(
            in_channels=in_channels,
            out_channels=len(weights["final_layer.linear.bias"]) // math.prod(patch),
            width=width,
            depth=sum(name.startswith("spatial_blocks.") and name.endswith("qkv.bias") for name in weights),
            num_heads=width // len(weights[first + "attn.q_norm.weight"]),
            mlp_width=len(weights[first + "mlp.fc1.bias"]),
            patch=(patch[0], patch[1], patch[2]),
            context_size=context_size,
            num_tokens=num_tokens,
        )


class STDiT3(nn.Module):
    """Network that predicts the velocity from noise to latents ``batch channels frames height width``."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = size = architecture
        head = size.width // size.num_heads
        frequencies = 10000 ** -(torch.arange(0, head, 2).float() / head)
        self.rope = nn.ParameterDict({"freqs": nn.Parameter(frequencies, requires_grad=False)})
        patches = nn.Conv3d(size.in_channels, size.width, size.patch, stride=size.patch)
        self.x_embedder = nn.Sequential(OrderedDict(proj=patches))
        self.t_embedder = _SinusoidEmbedder(size.width)
        self.fps_embedder = _SinusoidEmbedder(size.width)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(size.width, 6 * size.width))
        self.y_embedder = _PromptEmbedder(size)
        self.spatial_blocks = nn.ModuleList(_Block(size) for _ in range(size.depth))
        self.temporal_blocks = nn.ModuleList(_TemporalBlock(size) for _ in range(size.depth))
        self.final_layer = _LastLayer(size)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the frozen weights, in which everything but the adapter is computed."""
        return self.t_block[1].weight.dtype  # type: ignore[return-value]

    @property
    def device(self) -> torch.device:
        return self.t_block[1].weight.device  # type: ignore[return-value]

    @property
    def empty_prompt(self) -> Float[Tensor, "tokens context"]:
        """The learnt embedding of a prompt that was left out in training."""
        return self.y_embedder.y_embedding

    def forward(  # noqa: PLR0913
        self,
        sample: Float[Tensor, "batch channels frames height width"],
        timestep: Float[Tensor, " batch"],
        encoder_hidden_states: Float[Tensor, "batch tokens context"],
        encoder_attention_mask: Int[Tensor, "batch tokens"] | Bool[Tensor, "batch tokens"],
        fps: int,
        height: int,
        width: int,
        return_dict: bool = True,
    ) -> SimpleNamespace | tuple[Tensor]:
        """Predict the velocity, latents minus noise, in the dtype of ``sample``.

        Args:
            sample: noisy latents of any size; the last patches are padded with zeros.
            timestep: noise level of each video, 0 to 1000. It is rounded to the dtype of the weights, as in
                the published program.
            encoder_hidden_states: embedded prompts.
            encoder_attention_mask: 1 for tokens of the prompt and 0 for padding.
            fps: frame rate of the video in frames per second.
            height: of a frame in pixels.
            width: of a frame in pixels.
            return_dict: return an object with ``sample``, as diffusers' denoisers do, instead of a tuple.
        """
        size, dtype = self.architecture, self.dtype
        padding = [-side % each for side, each in zip(sample.shape[2:], size.patch, strict=True)]
        padded = functional.pad(sample.to(dtype), (0, padding[2], 0, padding[1], 0, padding[0]))
        x = self.x_embedder(padded)
        grid = x.shape[2:]
        distance = math.sqrt(height * width) / BASE_SIDE
        x = x.flatten(3).permute(0, 2, 3, 1) + _positions(size.width, grid[1], grid[2], distance, x)
        embedding = self.t_embedder(timestep.to(dtype)) + self.fps_embedder(timestep.new_tensor([float(fps)]))
        conditions = (
            self.y_embedder(encoder_hidden_states.to(dtype)),
            encoder_attention_mask.bool()[:, None, None],
            self.t_block(embedding).unflatten(1, (6, -1)),
            _angles(grid[0], self.rope["freqs"]),
        )
        for spatial, temporal in zip(self.spatial_blocks, self.temporal_blocks, strict=True):
            x = temporal(spatial(x, *conditions), *conditions)
        video = _unfold_patches(self.final_layer(x, embedding), grid, size.patch)
        frames, rows, columns = sample.shape[2:]
        velocity = video[:, : size.in_channels, :frames, :rows, :columns].to(sample.dtype)
        return SimpleNamespace(sample=velocity) if return_dict else (velocity,)


def _positions(features: int, rows: int, columns: int, distance: float, like: Tensor) -> Tensor:
    """Return sinusoids of the column and the row of each patch, ``patches features``.

    Patches of a square video of `BASE_SIDE` pixels are one unit apart, those of another have the same span in
    relation to its size. The sinusoids are float32 at least; their frequencies are rounded to the dtype of
    the weights, as in the published program.
    """
    half = features // 2
    frequencies = (1 / 10000 ** (torch.arange(0, half, 2, device=like.device).float() / half)).to(like.dtype)
    side, wide = round(math.sqrt(rows * columns)), torch.promote_types(like.dtype, torch.float32)

    def along(count: int) -> Tensor:
        places = torch.arange(count, device=like.device, dtype=wide) / distance * (side / count)
        angles = places[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    row = along(rows)[:, None].expand(-1, columns, -1)
    column = along(columns)[None].expand(rows, -1, -1)
    return torch.cat([column, row], dim=2).flatten(0, 1).to(like.dtype)


def _angles(num_frames: int, frequencies: Tensor) -> Float[Tensor, "frames head"]:
    """Return the angles by which rotary embeddings (arXiv 2104.09864) turn pairs of neighbouring features."""
    frames = torch.arange(num_frames, device=frequencies.device, dtype=frequencies.dtype)
    return (frames[:, None] * frequencies).repeat_interleave(2, dim=1)


def _rotated(x: Float[Tensor, "rows heads frames head"], angles: Tensor) -> Tensor:
    even, odd = x.unflatten(3, (-1, 2)).unbind(4)
    turned = torch.stack([-odd, even], dim=4).flatten(3)
    return x * angles.cos() + turned * angles.sin()


def _unfold_patches(
    x: Float[Tensor, "batch frames patches values"], grid: torch.Size, patch: tuple[int, int, int]
) -> Float[Tensor, "batch channels frames height width"]:
    """Move the values of each patch, in the order frames, height, width, channels, to their places."""
    parts: Tensor = (
        x.unflatten(3, (*patch, -1)).unflatten(2, (grid[1], grid[2])).permute(0, 7, 1, 4, 2, 5, 3, 6)
    )
    return parts.flatten(6, 7).flatten(4, 5).flatten(2, 3)


class _SinusoidEmbedder(nn.Module):
    """Embeds numbers by sinusoids, which are float32 in every precision of the denoiser."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(NUM_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, numbers: Float[Tensor, " batch"]) -> Float[Tensor, "batch width"]:
        waves = get_timestep_embedding(numbers, NUM_FREQUENCIES, flip_sin_to_cos=True, downscale_freq_shift=0)
        embedded: Tensor = self.mlp(waves.to(self.mlp[0].weight.dtype))
        return embedded


class _PromptEmbedder(nn.Module):
    """Projects embedded prompts, and holds the embedding of a prompt that was left out."""

    y_embedding: Tensor

    def __init__(self, size: Architecture) -> None:
        super().__init__()
        self.y_proj = _FeedForward(size.context_size, size.width, size.width)
        self.register_buffer("y_embedding", torch.zeros(size.num_tokens, size.context_size))

    def forward(self, prompts: Float[Tensor, "batch tokens context"]) -> Float[Tensor, "batch tokens width"]:
        projected: Tensor = self.y_proj(prompts)
        return projected


class _FeedForward(nn.Module):
    """Two linear layers with a GELU in its approximation by tanh."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        fed: Tensor = self.fc2(functional.gelu(self.fc1(x), approximate="tanh"))
        return fed


class _Block(nn.Module):
    """Attention between the patches of one frame, attention to the prompt, feed-forward."""

    def __init__(self, size: Architecture) -> None:
        super().__init__()
        self.attn = _Attention(size.width, size.num_heads)
        self.cross_attn = _PromptAttention(size.width, size.num_heads)
        self.mlp = _FeedForward(size.width, size.mlp_width, size.width)
        self.scale_shift_table = nn.Parameter(torch.zeros(6, size.width))

    def forward(
        self,
        x: Float[Tensor, "batch frames patches width"],
        prompts: Float[Tensor, "batch tokens width"],
        mask: Bool[Tensor, "batch 1 1 tokens"],
        modulation: Float[Tensor, "batch 6 width"],
        angles: Float[Tensor, "frames head"],
    ) -> Float[Tensor, "batch frames patches width"]:
        table = (self.scale_shift_table + modulation)[:, :, None, None]
        shift, scale, gate, last_shift, last_scale, last_gate = table.unbind(1)
        x = x + gate * self._attend(_normalised(x) * (1 + scale) + shift, angles)
        x = x + self.cross_attn(x.flatten(1, 2), prompts, mask).view_as(x)
        fed: Tensor = x + last_gate * self.mlp(_normalised(x) * (1 + last_scale) + last_shift)
        return fed

    def _attend(self, x: Tensor, _angles: Tensor) -> Tensor:
        attended: Tensor = self.attn(x.flatten(0, 1), None)
        return attended.view_as(x)


class _TemporalBlock(_Block):
    """Attention between the frames of one patch, attention to the prompt, feed-forward."""

    def _attend(self, x: Tensor, angles: Tensor) -> Tensor:
        frames = x.transpose(1, 2)
        attended: Tensor = self.attn(frames.flatten(0, 1), angles)
        return attended.view(frames.shape).transpose(1, 2)


class _Attention(nn.Module):
    """Multi-head self-attention with normalised queries and keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.q_norm, self.k_norm = (nn.RMSNorm(width // heads, eps=1e-6) for _ in range(2))

    def forward(self, x: Float[Tensor, "rows tokens width"], angles: Tensor | None) -> Tensor:
        """Attend; with angles, queries and keys are turned by rotary embeddings."""
        query, key, value = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = self.q_norm(query), self.k_norm(key)
        if angles is not None:
            query, key = _rotated(query, angles), _rotated(key, angles)
        attended = functional.scaled_dot_product_attention(query, key, value)
        mixed: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return mixed


class _PromptAttention(nn.Module):
    """Multi-head attention to the tokens of the prompt."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_linear, self.kv_linear = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "batch patches width"], prompts: Tensor, mask: Tensor) -> Tensor:
        query = self.q_linear(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        key, value = self.kv_linear(prompts).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        mixed: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return mixed


class _LastLayer(nn.Module):
    """Modulated normalisation, and a projection to the values of each patch."""

    def __init__(self, size: Architecture) -> None:
        super().__init__()
        self.linear = nn.Linear(size.width, math.prod(size.patch) * size.out_channels)
        self.scale_shift_table = nn.Parameter(torch.zeros(2, size.width))

    def forward(
        self, x: Float[Tensor, "batch frames patches width"], embedding: Float[Tensor, "batch width"]
    ) -> Tensor:
        table = (self.scale_shift_table + embedding[:, None])[:, :, None, None]
        shift, scale = table.unbind(1)
        values: Tensor = self.linear(_normalised(x) * (1 + scale) + shift)
        return values


def _normalised(x: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], eps=1e-6)
