"""The autoencoder of Open-Sora 1.2 (hpcaitech/Open-Sora at v1.2.0), with its published names.

An image autoencoder for each frame, and a causal one in time over the latents of clips of `CLIP_FRAMES`
frames. Clips do not see each other. All sizes can be read from the shapes of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from vader_ray.models.core.image_autoencoder import level_widths
from vader_ray.models.core.layer_stream import TIME, unfold_channels

CLIP_FRAMES, CLIP_LATENTS = 17, 5
"""Frames and latent frames of a clip."""
FRAMES_PER_LATENT = 4
"""Frames of a latent frame; those of the first one of a clip are padding but for its last ones."""
IMAGE_SCALE = 0.18215
"""Factor of the latents of single frames, before the autoencoder in time."""
_NUM_GROUPS = 32


@dataclass(frozen=True, slots=True)
class TemporalArchitecture:
    """Sizes of the autoencoder in time."""

    channels: int
    """Channels of the latents of single frames."""
    latent_channels: int
    width: int
    """Channels of the first convolution."""
    multipliers: tuple[int, ...]
    """Channels of each level, in multiples of ``width``."""
    halves: tuple[bool, ...]
    """Whether the number of frames is halved after each level but the last."""
    num_res_blocks: int
    """Residual blocks of each level."""

    @classmethod
    def read(cls, weights: Mapping[str, Tensor]) -> TemporalArchitecture:
        """Return the sizes of a checkpoint, from the shapes of its weights.

        Raises:
            KeyError: a weight that every such autoencoder has is missing.
        """
        width, channels = weights["encoder.conv_in.conv.weight"].shape[:2]
        widths = level_widths(weights, "encoder.block_res_blocks.{}.0.conv1.conv.weight")
        return cls(
            channels=channels,
            latent_channels=len(weights["post_quant_conv.conv.bias"]),
            width=width,
            multipliers=tuple(each // width for each in widths),
            halves=tuple(
                f"encoder.conv_blocks.{level}.conv.bias" in weights for level in range(len(widths) - 1)
            ),
            num_res_blocks=sum(
                name.startswith("encoder.res_blocks.") and name.endswith(".norm1.bias") for name in weights
            ),
        )

    @property
    def widths(self) -> list[int]:
        """Channels of each level."""
        return [self.width * multiplier for multiplier in self.multipliers]


class VideoAutoencoder(nn.Module):
    """The autoencoder of frames and the autoencoder in time; latents have about mean 0 and deviation 1."""

    scale: Tensor
    shift: Tensor

    def __init__(self, spatial: AutoencoderKL, temporal: TemporalArchitecture) -> None:
        super().__init__()
        self.spatial_vae = nn.ModuleDict({"module": spatial})
        self.temporal_vae = TemporalAutoencoder(temporal)
        shape = (1, temporal.latent_channels, 1, 1, 1)
        self.register_buffer("scale", torch.ones(shape))
        self.register_buffer("shift", torch.zeros(shape))

    @property
    def dtype(self) -> torch.dtype:
        return self.scale.dtype

    @property
    def device(self) -> torch.device:
        return self.scale.device

    @property
    def latent_channels(self) -> int:
        return self.scale.shape[1]

    def encode(
        self, video: Float[Tensor, "batch 3 frames height width"]
    ) -> Float[Tensor, "batch channels latent_frames latent_height latent_width"]:
        """Return the modes of the latents of a video in [−1, 1]."""
        images = self.images.encode(video.transpose(1, 2).flatten(0, 1)).latent_dist.mode() * IMAGE_SCALE
        frames: Tensor = images.unflatten(0, (len(video), -1)).transpose(1, 2)
        clips = torch.cat([self.temporal_vae.encode(clip) for clip in frames.split(CLIP_FRAMES, TIME)], TIME)
        return (clips - self.shift) / self.scale

    def decode(
        self,
        latents: Float[Tensor, "batch channels latent_frames latent_height latent_width"],
        num_frames: int,
    ) -> Float[Tensor, "batch 3 frames height width"]:
        """Return the whole video in about [−1, 1], in the dtype of the weights."""
        clips = [
            self.decode_clip(clip, min(CLIP_FRAMES, num_frames - index * CLIP_FRAMES))
            for index, clip in enumerate(latents.to(self.dtype).split(CLIP_LATENTS, TIME))
        ]
        return self.decode_frames(torch.cat(clips, TIME))

    def decode_clip(self, latents: Tensor, num_frames: int) -> Tensor:
        """Return the latents of the single frames of one clip, ``batch channels frames h w``."""
        decoded: Tensor = self.temporal_vae.decode(latents * self.scale + self.shift)
        return decoded[:, :, decoded.shape[TIME] - num_frames :]

    def decode_frames(self, images: Tensor) -> Tensor:
        """Return the video of latents of single frames."""
        decoded = self.images.decode(images.transpose(1, 2).flatten(0, 1) / IMAGE_SCALE).sample
        video: Tensor = decoded.unflatten(0, (len(images), -1)).transpose(1, 2)
        return video

    @property
    def images(self) -> Any:
        """The autoencoder of frames."""
        return self.spatial_vae["module"]


class TemporalAutoencoder(nn.Module):
    """Causal convolutions over the latents of single frames; height and width stay."""

    def __init__(self, size: TemporalArchitecture) -> None:
        super().__init__()
        self.encoder, self.decoder = _Encoder(size), _Decoder(size)
        self.quant_conv = _CausalConvolution(2 * size.latent_channels, 2 * size.latent_channels, 1)
        self.post_quant_conv = _CausalConvolution(size.latent_channels, size.latent_channels, 1)

    def encode(self, images: Tensor) -> Tensor:
        """Return the modes of the latents; zeros before the first frame complete the first latent frame."""
        missing = -images.shape[TIME] % FRAMES_PER_LATENT
        padded = functional.pad(images, (0, 0, 0, 0, missing, 0))
        moments: Tensor = self.quant_conv(self.encoder(padded))
        return moments.chunk(2, dim=1)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """Return `FRAMES_PER_LATENT` frames of each latent frame."""
        decoded: Tensor = self.decoder(self.post_quant_conv(latents))
        return decoded


class _Encoder(nn.Module):
    """Convolutions that halve the number of frames after some levels."""

    def __init__(self, size: TemporalArchitecture) -> None:
        super().__init__()
        widths, num_blocks = size.widths, size.num_res_blocks
        self.conv_in = _CausalConvolution(size.channels, size.width, 3, bias=False)
        self.block_res_blocks = nn.ModuleList(
            _residual_blocks(before, width, num_blocks) for before, width in pairwise([size.width, *widths])
        )
        self.conv_blocks = nn.ModuleList(
            _CausalConvolution(width, width, 3, stride=2) if halved else nn.Identity()
            for width, halved in zip(widths[:-1], size.halves, strict=True)
        )
        self.res_blocks = _residual_blocks(widths[-1], widths[-1], num_blocks)
        self.norm1 = nn.GroupNorm(_NUM_GROUPS, widths[-1])
        self.conv2 = _CausalConvolution(widths[-1], 2 * size.latent_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(images)
        for blocks, shortening in zip(self.block_res_blocks, [*self.conv_blocks, nn.Identity()], strict=True):
            x = shortening(blocks(x))
        encoded: Tensor = self.conv2(functional.silu(self.norm1(self.res_blocks(x))))
        return encoded


class _Decoder(nn.Module):
    """Convolutions that double the number of frames before some levels, from the last level to the first."""

    def __init__(self, size: TemporalArchitecture) -> None:
        super().__init__()
        widths, num_blocks = size.widths, size.num_res_blocks
        self.conv1 = _CausalConvolution(size.latent_channels, widths[-1], 3)
        self.res_blocks = _residual_blocks(widths[-1], widths[-1], num_blocks)
        self.block_res_blocks = nn.ModuleList(
            _residual_blocks(before, width, num_blocks) for width, before in pairwise([*widths, widths[-1]])
        )
        self.conv_blocks = nn.ModuleList(
            _Doubling(width) if doubled else nn.Identity()
            for width, doubled in zip(widths[1:], size.halves, strict=True)
        )
        self.norm1 = nn.GroupNorm(_NUM_GROUPS, widths[0])
        self.conv_out = _CausalConvolution(widths[0], size.channels, 3)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.res_blocks(self.conv1(latents))
        levels = zip(self.block_res_blocks, [nn.Identity(), *self.conv_blocks], strict=True)
        for blocks, doubling in reversed(list(levels)):
            x = doubling(blocks(x))
        decoded: Tensor = self.conv_out(functional.silu(self.norm1(x)))
        return decoded


class _CausalConvolution(nn.Module):
    """Convolution that sees a frame and earlier ones; zeros are before the first frame and around each."""

    def __init__(self, width: int, out: int, kernel: int, *, stride: int = 1, bias: bool = True) -> None:
        super().__init__()
        side = kernel // 2
        self.conv = nn.Conv3d(width, out, kernel, stride=(stride, 1, 1), padding=(0, side, side), bias=bias)
        self._before = kernel - stride

    def forward(self, x: Float[Tensor, "batch channels frames height width"]) -> Tensor:
        convolved: Tensor = self.conv(functional.pad(x, (0, 0, 0, 0, self._before, 0)))
        return convolved


class _Doubling(_CausalConvolution):
    """Convolution that makes two frames of each."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 2 * width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return unfold_channels(super().forward(x), 2, 1, 1)


class ResBlock(nn.Module):
    """Two convolutions, added to their input; normalisation is over all frames of a clip."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(_NUM_GROUPS, width), nn.GroupNorm(_NUM_GROUPS, out)
        self.conv1 = _CausalConvolution(width, out, 3, bias=False)
        self.conv2 = _CausalConvolution(out, out, 3, bias=False)
        self.conv3 = nn.Identity() if width == out else _CausalConvolution(width, out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        change = self.conv1(functional.silu(self.norm1(x)))
        change = self.conv2(functional.silu(self.norm2(change)))
        added: Tensor = self.conv3(x) + change
        return added


def _residual_blocks(width: int, out: int, number: int) -> nn.Sequential:
    return nn.Sequential(*(ResBlock(out if index else width, out) for index in range(number)))
