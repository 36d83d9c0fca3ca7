"""MUSIQ (arXiv 2108.05997): a transformer that rates the technical quality of images of any size.

Written from the paper and google-research's description of the network, with the names of the weights of the
checkpoint that VBench uses (``musiq_spaq_ckpt-358bb6af.pth``). The usual port to PyTorch is under a
non-commercial licence and not used.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from vader_ray.rewards.core.preprocess import resize

PATCH, GRID, WIDTH, HEADS, BLOCKS, INNER = 32, 10, 384, 6, 14, 1152
"""Side of a patch in pixels, side of the grid of positions, features, heads, blocks and features inside."""
LONG_SIDES = (224, 384)
"""Long sides of the image at the reduced scales, in pixels; the third scale is the image itself."""
MASKED = -1e3
"""Logit of the attention between tokens of which one is padding."""

Images = Float[Tensor, "n 3 height width"]
Tokens = Float[Tensor, "n tokens features"]


class Musiq(nn.Module):
    """The network; its image is in [0, 1] and its rating about 0 to 100.

    Args:
        width: features of a token, times those of the published network.
        blocks: blocks of the transformer.
    """

    def __init__(self, width: int = WIDTH, blocks: int = BLOCKS) -> None:
        super().__init__()
        self.conv_root = StandardisedConv(3, 64, 7, 2)
        self.gn_root = nn.GroupNorm(32, 64, eps=1e-6)
        self.block1 = Bottleneck()
        self.embedding = nn.Linear(256 * (PATCH // 4) ** 2, width)
        self.transformer_encoder = Encoder(width, blocks)
        self.head = nn.Linear(width, 1)

    def forward(self, images: Images) -> Float[Tensor, " n"]:
        """Return the rating of each image."""
        parts = [self._tokens(images, scale) for scale in range(len(LONG_SIDES) + 1)]
        tokens, masks = zip(*parts, strict=True)
        rating: Tensor = self.head(self.transformer_encoder(torch.cat(tokens, dim=1), torch.cat(masks)))
        return rating[:, 0]

    def _tokens(self, images: Images, scale: int) -> tuple[Tokens, Float[Tensor, " tokens"]]:
        """Return the embedded patches of one scale with positions, and which of them are no padding."""
        pixels = rescaled(images, scale)
        patches, rows, columns = cut_patches(pixels)
        budget = num_tokens(scale) or patches.shape[1]
        mask = torch.ones(min(budget, patches.shape[1]), dtype=images.dtype, device=images.device)
        padding = budget - len(mask)
        tokens = self._embed(patches[:, :budget])
        positions = (
            self.transformer_encoder.positions(rows, columns)[:, :budget]
            + (self.transformer_encoder.scaleembed_input.scale_emb[scale])
        )
        return functional.pad(tokens + positions, (0, 0, 0, padding)), functional.pad(mask, (0, padding))

    def _embed(self, patches: Float[Tensor, "n patches 3 32 32"]) -> Tokens:
        x = functional.relu(self.gn_root(self.conv_root(patches.flatten(0, 1))))
        x = self.block1(functional.max_pool2d(padded_same(x, 3, 2), 3, 2))
        tokens: Tensor = self.embedding(x.permute(0, 2, 3, 1).flatten(1)).unflatten(0, patches.shape[:2])
        return tokens


class StandardisedConv(nn.Conv2d):
    """Convolution without a bias whose filters have mean 0 and deviation 1; sides as TensorFlow's SAME."""

    def __init__(self, channels: int, filters: int, size: int, stride: int = 1) -> None:
        super().__init__(channels, filters, size, stride, bias=False)

    def forward(self, input: Float[Tensor, "n channels h w"]) -> Float[Tensor, "n filters h2 w2"]:
        """Return the filtered images."""
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        weight = weight / (weight.std(dim=(1, 2, 3), keepdim=True) + 1e-5)
        (size, _), (stride, _) = self.kernel_size, self.stride
        return functional.conv2d(padded_same(input, size, stride), weight, stride=stride)


class Bottleneck(nn.Module):
    """The only residual block of the patch encoder, from 64 to 256 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.gn1 = StandardisedConv(64, 64, 1), nn.GroupNorm(32, 64, eps=1e-4)
        self.conv2, self.gn2 = StandardisedConv(64, 64, 3), nn.GroupNorm(32, 64, eps=1e-4)
        self.conv3, self.gn3 = StandardisedConv(64, 256, 1), nn.GroupNorm(32, 256, eps=1e-4)
        self.conv_proj, self.gn_proj = StandardisedConv(64, 256, 1), nn.GroupNorm(32, 256, eps=1e-4)

    def forward(self, x: Float[Tensor, "n 64 h w"]) -> Float[Tensor, "n 256 h w"]:
        """Return the features of each patch."""
        inner = functional.relu(self.gn1(self.conv1(x)))
        inner = functional.relu(self.gn2(self.conv2(inner)))
        return functional.relu(self.gn_proj(self.conv_proj(x)) + self.gn3(self.conv3(inner)))


class Encoder(nn.Module):
    """The transformer, with its position and scale embeddings and its class token."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.posembed_input = PositionEmbedding(width)
        self.scaleembed_input = ScaleEmbedding(width)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.transformer = nn.ModuleDict({f"encoderblock_{index}": Block(width) for index in range(blocks)})
        self.encoder_norm = nn.LayerNorm(width, eps=1e-6)

    def positions(self, rows: int, columns: int) -> Float[Tensor, "1 patches features"]:
        """Return the position embedding of each patch."""
        index = hashed_positions(rows, columns).to(self.cls.device)
        return self.posembed_input.position_emb[:, index]

    def forward(self, tokens: Tokens, mask: Float[Tensor, " tokens"]) -> Float[Tensor, "n features"]:
        """Return the class token after all blocks."""
        x = torch.cat([self.cls.expand(len(tokens), -1, -1), tokens], dim=1)
        mask = functional.pad(mask, (1, 0), value=1.0)
        real = mask[:, None] * mask
        for block in self.transformer.values():
            x = block(x, real > 0)
        encoded: Tensor = self.encoder_norm(x)[:, 0]
        return encoded


class PositionEmbedding(nn.Module):
    """One vector for each cell of a grid that is spread over the image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.position_emb = nn.Parameter(torch.zeros(1, GRID * GRID, width))


class ScaleEmbedding(nn.Module):
    """One vector for each scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_emb = nn.Parameter(torch.zeros(len(LONG_SIDES) + 1, width))


class Block(nn.Module):
    """A block of the transformer: attention and a feed-forward network, each behind a normalisation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width)
        inner = width * INNER // WIDTH
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})

    def forward(self, x: Tokens, real: Tensor) -> Tokens:
        """Return the tokens after the block; ``real`` are the pairs of tokens that are no padding."""
        x = x + self.attention(self.norm1(x), real)
        added: Tensor = self.mlp["fc2"](functional.gelu(self.mlp["fc1"](self.norm2(x))))
        return x + added


class Attention(nn.Module):
    """Attention in several heads; a pair with padding has a low logit instead of none."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tokens, real: Tensor) -> Tokens:
        """Return the attended tokens."""
        query, key, value = (
            layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        logits = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        weights = logits.masked_fill(~real, MASKED).softmax(dim=-1)
        attended: Tensor = self.out((weights @ value).transpose(1, 2).flatten(2))
        return attended


def rescaled(images: Images, scale: int) -> Float[Tensor, "n 3 h w"]:
    """Return the images in [−1, 1] at one of the three scales (bicubic, not antialiased)."""
    images = 2 * images - 1
    if scale == len(LONG_SIDES):
        return images
    height, width = images.shape[-2:]
    factor = LONG_SIDES[scale] / max(height, width)
    sides = (round(height * factor), round(width * factor))
    return resize(images, *sides, "bicubic", antialias=False, clamp=False)


def num_tokens(scale: int) -> int | None:
    """Return the number of tokens of a scale; None for the image itself, which has all its patches."""
    return None if scale == len(LONG_SIDES) else math.ceil(LONG_SIDES[scale] / PATCH) ** 2


def cut_patches(images: Images) -> tuple[Float[Tensor, "n patches 3 32 32"], int, int]:
    """Return the patches of the images, row by row, and the numbers of rows and columns of patches."""
    padded = padded_same(images, PATCH, PATCH)
    patches = padded.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
    rows, columns = patches.shape[2:4]
    return patches.permute(0, 2, 3, 1, 4, 5).flatten(1, 2), rows, columns


def padded_same(images: Float[Tensor, "n channels h w"], size: int, stride: int) -> Tensor:
    """Return the images with zeros around them, as TensorFlow's padding SAME."""
    # The indices are cached, and another call may be on the meta device.
    down, across = (max((-(-side // stride) - 1) * stride + size - side, 0) for side in images.shape[-2:])
    return functional.pad(images, (across // 2, across - across // 2, down // 2, down - down // 2))


@lru_cache(maxsize=64)
def hashed_positions(rows: int, columns: int) -> Int[Tensor, " patches"]:
    """Return the cell of the grid of positions for each patch, row by row."""
    # The indices are cached, and another call may be on the meta device.
    down, across = (torch.arange(count, device="cpu") * GRID // count for count in (rows, columns))
    return (down[:, None] * GRID + across).flatten()
