"""Count the weights of a worker whose model is divided over several, or waits in host memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook
from torch.utils._pytree import tree_leaves

from vader_ray.config import RuntimeConfig
from vader_ray.types import DividedNetwork, GatheredPart


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


@contextmanager
def counted_gathers(parts: Sequence[GatheredPart]) -> Iterator[Counter[int]]:
    """Count how often the weights of each part of whole networks would be gathered, by the part's index.

    Once in each call, recomputed ones included, and once in each backward pass. FSDP gathers a part less
    often that it still has in memory: the last blocks of a recomputed call.
    """
    gathers = Counter[int]()
    with ExitStack() as stack:
        for index, part in enumerate(parts):
            hook = part.module.register_forward_hook(partial(_count_call, gathers, index))
            stack.callback(hook.remove)
        yield gathers


def _count_call(gathers: Counter[int], index: int, _part: nn.Module, _inputs: Any, output: Any) -> None:
    gathers[index] += 1
    tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if tensors:
        register_multi_grad_hook(tensors, lambda _: gathers.update([index]), mode="any")
