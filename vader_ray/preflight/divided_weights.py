"""Count the weights of a worker whose model is divided over several, or waits in host memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vader_ray.config import RuntimeConfig
from vader_ray.types import DividedNetwork


@dataclass(frozen=True, slots=True)
class DividedWeights:
    """Changes of a worker's memory by ``runtime.shard`` and ``runtime.offload_weights``, in bytes."""

    saved: int = 0
    """Weights that are no longer on the device."""
    gathered: int = 0
    """Weights that are whole on the device during a call of a network."""
    host: int = 0
    """Weights that wait in host memory."""


def divide(runtime: RuntimeConfig, networks: Sequence[DividedNetwork]) -> DividedWeights:
    """Count the frozen weights of networks that are called one after the other.

    Args:
        runtime: number of workers in a group, and whether weights wait in host memory.
        networks: whole, on any device.
    """
    if runtime.shard == 1 and not runtime.offload_weights:
        return DividedWeights()
    share = sum(each.share_bytes(runtime.shard) for each in networks)
    on_device, on_host = (0, share) if runtime.offload_weights else (share, 0)
    return DividedWeights(
        saved=sum(each.frozen_bytes() for each in networks) - on_device,
        gathered=max((each.gathered_bytes() for each in networks), default=0),
        host=on_host,
    )
