"""Optical flow by RAFT (arXiv 2003.12039) of torchvision, and VBench's measure of how much a video moves."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torchvision.models.optical_flow import Raft_Large_Weights, Raft_Small_Weights, raft_large, raft_small
from torchvision.models.optical_flow.raft import CorrBlock

from vader_ray.errors import UserError
from vader_ray.rewards.base import frozen
from vader_ray.rewards.core.preprocess import resize
from vader_ray.rewards.core.resizing import short_side_at
from vader_ray.types import Frames
from vader_ray.weights import load_strictly, read_state_dict, resolve_url, resolve_weights

Architecture: TypeAlias = Literal["large", "small"]
"""``large`` has the weights of the paper (``raft-things``), which VBench uses."""
WEIGHTS = "pytorch/vision raft_large_C_T_V1"
"""Name of the default weights, for people."""
LICENCE = "BSD-3-Clause"
URLS = {"large": Raft_Large_Weights.C_T_V1.url, "small": Raft_Small_Weights.C_T_V2.url}
LEAST_SIDE, STRIDE = 128, 8
"""Smallest side of a frame that RAFT's pyramid takes, and the number that divides its sides, in pixels."""
NUM_UPDATES = 20
"""Iterations of RAFT, as in VBench."""
LARGEST = 0.05
"""Share of the pixels, those with the largest flow, whose mean is a pair's speed."""
STILL = 1e-3
"""Smoothing of |flow| at 0, in pixels, so that the gradient of a still pair is 0 and not NaN."""
PAIRS_AT_ONCE = 4
"""Pairs of frames of one pass; the activations of other passes are recomputed in the backward pass."""

Flow: TypeAlias = Float[Tensor, "pairs 2 flow_height flow_width"]
"""Displacement in pixels (right, down) of each pixel from the first to the second frame of a pair."""


class Raft(nn.Module):
    """A frozen RAFT for frames in [0, 1] of any size.

    In RAFT's iterations the positions at which features are compared are detached, as in the paper: the
    gradient of the flow is that through the features and the hidden state. After one iteration it is the
    exact one.

    Args:
        weights: local file with torchvision's names, or hub repository; by default torchvision's own file.
        architecture: of torchvision.
        num_updates: iterations.
    """

    def __init__(self, weights: str | None, architecture: Architecture, num_updates: int) -> None:
        super().__init__()
        block = _WideCorrBlock(num_levels=4, radius=4 if architecture == "large" else 3)
        build = raft_large if architecture == "large" else raft_small
        self.network = frozen(build(corr_block=block))
        self.network.update_block.motion_encoder.register_forward_pre_hook(_widen_flow)
        path = resolve_weights(weights) if weights else resolve_url(URLS[architecture])
        load_strictly(self.network, read_state_dict(path), path)
        self.num_updates = num_updates

    def forward(
        self, first: Float[Tensor, "pairs 3 height width"], second: Float[Tensor, "pairs 3 height width"]
    ) -> Flow:
        """Return the flow of pairs of frames in [0, 1], on frames that are padded to multiples of 8.

        Raises:
            UserError: the network is in half precision, in which positions are not exact.
        """
        if next(self.network.parameters()).dtype in (torch.float16, torch.bfloat16):
            raise UserError(
                "RAFT computes positions, which need more than 8 or 11 bits; set precision: float32 there"
            )
        flow: Tensor = self.network(_padded(first), _padded(second), self.num_updates)[-1]
        self.network.corr_block.corr_pyramid = []  # hold no activations between calls
        return flow

    def of_neighbours(self, frames: Float[Tensor, "frames 3 height width"]) -> Flow:
        """Return the flow from each frame of one video to the next.

        Pairs are computed a few at a time, and with a gradient again in the backward pass.
        """
        starts = range(0, len(frames) - 1, PAIRS_AT_ONCE)
        return torch.cat([self._chunk(frames[start : start + PAIRS_AT_ONCE + 1]) for start in starts])

    def _chunk(self, frames: Float[Tensor, "frames 3 height width"]) -> Flow:
        pair: tuple[Any, ...] = (self, frames[:-1], frames[1:])
        flow: Tensor = checkpoint(*pair, use_reentrant=False) if frames.requires_grad else self(*pair[1:])
        return flow


def _widen_flow(_: nn.Module, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Cast the flow of the first iteration, which is float32, to the dtype of the features."""
    flow, features = inputs
    return flow.to(features.dtype), features


class _WideCorrBlock(CorrBlock):  # type: ignore[misc]
    """The correlation block with positions in the dtype of the features, for float64 too."""

    def index_pyramid(self, centroids_coords: Tensor) -> Tensor:
        features: Tensor = super().index_pyramid(centroids_coords.to(self.corr_pyramid[0].dtype))
        return features


def sized(frames: Frames, short: int | None) -> Float[Tensor, "batch frames 3 h w"]:
    """Return frames whose short side is at most ``short`` pixels and at least RAFT's least (bilinear)."""
    height, width = frames.shape[-2:]
    sides = flow_size(height, width, short)
    return frames if sides == (height, width) else resize(frames, *sides, "bilinear")


def flow_size(height: int, width: int, short: int | None) -> tuple[int, int]:
    """Return the height and width of frames of this size after `sized`."""
    side = int(max(LEAST_SIDE, min(height, width, short or math.inf)))
    return (height, width) if side == min(height, width) else short_side_at(height, width, side)


def relative_speeds(flow: Flow, height: int, width: int) -> Float[Tensor, " pairs"]:
    """Return the speed of each pair in VBench's thresholds: above 1, the pair counts as moving.

    The speed is the mean of the largest 5 % of the lengths of the flow on the padded frames. The threshold is
    6 pixels for frames whose short side is 256, and grows with it.

    Args:
        flow: of the padded frames.
        height: of the frames, in pixels.
        width: of the frames, in pixels.
    """
    lengths = (flow.square().sum(dim=1) + STILL**2).sqrt().flatten(1)
    largest = lengths.topk(int(LARGEST * lengths.shape[1]), dim=1).values
    return largest.mean(dim=1) / (6.0 * min(height, width) / 256)


def _padded(images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 3 padded_height padded_width"]:
    """Return the images in [−1, 1], their borders repeated up to multiples of 8, as the paper's code pads."""
    down, across = (-side % STRIDE for side in images.shape[-2:])
    borders = (across // 2, across - across // 2, down // 2, down - down // 2)
    return functional.pad(2 * images - 1, borders, mode="replicate")
