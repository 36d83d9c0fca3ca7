"""Network of MPS (arXiv 2405.14705): layers behind a CLIP in which image tokens attend to the prompt.

The layers are those of CoCa's decoder (arXiv 2205.01917): one head of keys and values for all heads of
queries, feed-forward networks beside the attention, rotary positions.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel

NUM_LAYERS, HEAD_FEATURES, FEED_FORWARD = 4, 64, 4
"""Layers behind CLIP, features of one head, and width of a feed-forward layer in widths of the features."""


class ConditionedCLIP(nn.Module):
    """A CLIP with the cross-attention network behind its image tokens, named as in the published file."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.model = CLIPModel(config)
        self.cross_model = CrossModel(config.projection_dim)

    def encode_text(
        self, tokens: Int[Tensor, "n tokens"]
    ) -> tuple[Float[Tensor, "n tokens features"], Float[Tensor, "n features"]]:
        """Return the projected features of all tokens, padding too, and those of the end of the prompt."""
        output = self.model.text_model(tokens)
        project = self.model.text_projection
        return project(output.last_hidden_state), project(output.pooler_output)

    def encode_images(
        self,
        pixels: Float[Tensor, "n 3 size size"],
        text: Float[Tensor, "n tokens features"],
        kept: Bool[Tensor, "n tokens"],
    ) -> Float[Tensor, "n features"]:
        """Return the first image token after it and the others have attended to the kept tokens."""
        seen = self.model.visual_projection(self.model.vision_model(pixel_values=pixels).last_hidden_state)
        conditioned: Tensor = self.cross_model(seen, text, kept)
        return conditioned[:, 0]


class CrossModel(nn.Module):
    """Layers of cross-attention to the text, each followed by self-attention, both added to their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList([Residual(CrossAttention(width)), Residual(ParallelBlock(width))])
            for _ in range(NUM_LAYERS)
        )

    def forward(
        self,
        image: Float[Tensor, "n patches features"],
        text: Float[Tensor, "n tokens features"],
        kept: Bool[Tensor, "n tokens"],
    ) -> Float[Tensor, "n patches features"]:
        """Return the image tokens after all layers."""
        for layer in self.layers:
            cross_attention, self_attention = layer.children()
            image = self_attention(cross_attention(image, text, kept))
        return image


class Residual(nn.Module):
    """A layer whose output is added to its input; the published names hold its ``fn``."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.fn = layer

    def forward(self, x: Tensor, *inputs: Tensor) -> Tensor:
        """Return the input plus the layer's output."""
        added: Tensor = self.fn(x, *inputs)
        return x + added


class UnbiasedNorm(nn.Module):
    """Layer normalisation whose bias is a buffer of zeros."""

    bias: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.register_buffer("bias", torch.zeros(width))

    def forward(self, x: Float[Tensor, "n tokens features"]) -> Float[Tensor, "n tokens features"]:
        """Return the normalised tokens."""
        return functional.layer_norm(x, x.shape[-1:], self.weight, self.bias)


class SwiGLU(nn.Module):
    """The first half of the features, times SiLU of the second."""

    def forward(self, x: Float[Tensor, "n tokens doubled"]) -> Float[Tensor, "n tokens features"]:
        """Return half as many features."""
        value, gate = x.chunk(2, dim=-1)
        return functional.silu(gate) * value


class CrossAttention(nn.Module):
    """Attention of image tokens to text tokens, plus a feed-forward network of the image tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = UnbiasedNorm(width)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_kv = nn.Linear(width, 2 * HEAD_FEATURES, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)
        inner = FEED_FORWARD * width
        self.ff = nn.Sequential(
            nn.Linear(width, 2 * inner, bias=False), SwiGLU(), nn.Linear(inner, width, bias=False)
        )

    def forward(
        self,
        image: Float[Tensor, "n patches features"],
        text: Float[Tensor, "n tokens features"],
        kept: Bool[Tensor, "n tokens"],
    ) -> Float[Tensor, "n patches features"]:
        """Return what is added to the image tokens."""
        image = self.norm(image)
        key, value = self.to_kv(text).chunk(2, dim=-1)
        seen = attend(self.to_q(image), key, value, kept[:, None, None])
        added: Tensor = self.to_out(seen) + self.ff(image)
        return added


class ParallelBlock(nn.Module):
    """Self-attention with rotary positions and a feed-forward network, both from one projection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = UnbiasedNorm(width)
        self.rotary_emb = RotaryEmbedding()
        inner = FEED_FORWARD * width
        self.sizes = (width, HEAD_FEATURES, HEAD_FEATURES, 2 * inner)
        self.fused_attn_ff_proj = nn.Linear(width, sum(self.sizes), bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.ff_out = nn.Sequential(SwiGLU(), nn.Linear(inner, width, bias=False))

    def forward(self, image: Float[Tensor, "n patches features"]) -> Float[Tensor, "n patches features"]:
        """Return what is added to the image tokens."""
        query, key, value, inner = self.fused_attn_ff_proj(self.norm(image)).split(self.sizes, dim=-1)
        heads = query.unflatten(-1, (-1, HEAD_FEATURES))
        query = self.rotary_emb(heads.transpose(1, 2)).transpose(1, 2).flatten(2)
        added: Tensor = self.attn_out(attend(query, self.rotary_emb(key), value)) + self.ff_out(inner)
        return added


class RotaryEmbedding(nn.Module):
    """Rotate pairs of features by an angle that grows with the position (arXiv 2104.09864)."""

    inv_freq: Tensor

    def __init__(self) -> None:
        super().__init__()
        exponents = torch.arange(0, HEAD_FEATURES, 2, dtype=torch.float32) / HEAD_FEATURES
        self.register_buffer("inv_freq", 10000.0**-exponents)

    def forward(self, x: Float[Tensor, "*n tokens features"]) -> Float[Tensor, "*n tokens features"]:
        """Return the rotated features; feature i is paired with feature i + 32."""
        positions = torch.arange(x.shape[-2], device=x.device, dtype=torch.float32)
        angles = torch.outer(positions, self.inv_freq.float()).repeat(1, 2)
        one, other = x.chunk(2, dim=-1)
        return x * angles.cos().to(x.dtype) + torch.cat((-other, one), dim=-1) * angles.sin().to(x.dtype)


def attend(
    query: Float[Tensor, "n patches features"],
    key: Float[Tensor, "n tokens head"],
    value: Float[Tensor, "n tokens head"],
    kept: Bool[Tensor, "n 1 1 tokens"] | None = None,
) -> Float[Tensor, "n patches features"]:
    """Return the attention of several heads of queries to one head of keys and values."""
    heads = query.unflatten(-1, (-1, HEAD_FEATURES)).transpose(1, 2)
    keys, values = (x[:, None].expand(-1, heads.shape[1], -1, -1) for x in (key, value))
    seen = functional.scaled_dot_product_attention(heads, keys, values, attn_mask=kept)
    return seen.transpose(1, 2).flatten(2)
