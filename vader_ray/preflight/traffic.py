"""Bytes that a worker moves in one step: weights, activations, gradients, frames of rewards, host memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vader_ray.config import RuntimeConfig
from vader_ray.types import GatheredPart


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that one worker moves in one step."""

    weights: int
    """Frozen weights that it receives from the other workers of its group, and sends to them."""
    activations: int
    """Tokens of attention layers, predictions and gradients of latents that it receives from the other
    workers of its videos, and sends to them."""
    adapter: int
    """Parts of the adapter's summed gradients that it sends in a ring, and receives."""
    frames: int
    """Frames that it sends to rewards with a ``placement``, and gradients that it receives."""
    host: int
    """Weights and caches of decoders that are copied between host memory and the device."""


def step_traffic(
    runtime: RuntimeConfig,
    gathers: Mapping[GatheredPart, int],
    *,
    activations: int,
    num_adapter_parameters: int,
    frames: int,
    cache: int,
) -> Traffic:
    """Return the traffic of one worker.

    Args:
        runtime: workers, groups, and where the weights wait.
        gathers: how often each part of a network is gathered.
        activations: bytes received from the other workers of its videos.
        num_adapter_parameters: numbers in the adapter's gradient.
        frames: bytes of frames that rewards in other processes score, and of gradients.
        cache: bytes of decoders' caches that are moved to host memory and back.
    """
    shares = sum(part.share_bytes(runtime.shard) * times for part, times in gathers.items())
    num_bytes = num_adapter_parameters * (2 if runtime.gradient_precision == "bfloat16" else 4)
    return Traffic(
        weights=(runtime.shard - 1) * shares,
        activations=activations,
        adapter=2 * (runtime.num_workers - 1) * num_bytes // runtime.num_workers,
        frames=frames,
        host=cache + shares * runtime.offload_weights,
    )
