"""Divide the frozen weights of networks over groups of workers (FSDP2), with the adapter whole on each.

Each block is one group of weights that is gathered before its forward and its backward pass and released
after them; the layers outside the blocks are another. Outputs are those of the whole network to the last bit,
gradients up to the order of sums, which FSDP's nodes in the graph change. The adapter is no part of it: its
gradients are summed as without sharding.

All workers of a group must call a network equally often, forward and backward. gloo has the one collective
that is used, ``all_gather_into_tensor``, so all of it runs on CPUs, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map_only

from vader_ray.models.core.placement import fix_device

GATHERED_BLOCKS = 2
"""Blocks whose weights are in memory during a backward pass: the one that is computed, and the one that is
gathered ahead."""
GATHERED_COPIES = 2
"""Copies of these weights: the result of the collective, and the weights that are cut out of it."""


@dataclass(frozen=True, slots=True, eq=False)
class GatheredPart:
    """A part of a network whose frozen weights are gathered together."""

    module: nn.Module
    """A block, or the network for its outer layers."""
    weights: tuple[nn.Parameter, ...]
    """The frozen weights."""

    def share_bytes(self, num_workers: int) -> int:
        """Return the bytes of the largest share of the weights when divided over some workers."""
        return sum(
            -(-len(each) // num_workers) * each[0].numel() * each.element_size() for each in self.weights
        )


@dataclass(frozen=True, slots=True)
class ShardedNetwork:
    """A network whose frozen weights are divided, and the blocks that are gathered one by one."""

    network: nn.Module
    """A denoiser or a text encoder."""
    blocks: list[nn.Module]
    """Parts of it, none in another, that it calls as modules."""

    def shard(self, mesh: DeviceMesh, device: torch.device, *, offload: bool) -> None:
        """Divide the frozen weights over the workers of a one-dimensional mesh; move the network to a device.

        Only the shares and one block at a time are on the device, never the whole network.

        Args:
            mesh: the workers of the group.
            device: on which the network computes.
            offload: keep the shares in host memory.
        """
        policy = CPUOffloadPolicy(pin_memory=device.type == "cuda") if offload else OffloadPolicy()
        kind, whole = type(self.network), _whole_parameters(self.network)
        for parameter in whole:
            parameter.data = parameter.data.to(device)
        fix_device(self.network, device)
        for part in (*self.blocks, self.network):
            part.register_forward_hook(_without_views)
            fully_shard(
                part, mesh=mesh, reshard_after_forward=True, ignored_params=whole, offload_policy=policy
            )
            _Released(part)
        sharded = type(self.network)  # transformers looks classes up by their full names
        sharded.__module__, sharded.__qualname__ = kind.__module__, kind.__qualname__

    def parts(self) -> list[GatheredPart]:
        """Return the blocks and the network without them, each with its frozen weights."""
        blocks = [_frozen_parameters(block) for block in self.blocks]
        outer = _frozen_parameters(self.network).difference(*blocks)
        modules = (*self.blocks, self.network)
        return [
            GatheredPart(module, tuple(found))
            for module, found in zip(modules, (*blocks, outer), strict=True)
        ]

    def frozen_bytes(self) -> int:
        """Return the bytes of the frozen weights."""
        return _num_bytes(_frozen_parameters(self.network))

    def share_bytes(self, num_workers: int) -> int:
        """Return the bytes of the largest share of the frozen weights when divided over some workers."""
        return sum(part.share_bytes(num_workers) for part in self.parts())

    def gathered_bytes(self) -> int:
        """Return the bytes of whole weights in memory during a call: the outer layers and two blocks."""
        sizes = sorted(_num_bytes(_frozen_parameters(block)) for block in self.blocks)
        return self.frozen_bytes() - sum(sizes) + GATHERED_COPIES * sum(sizes[-GATHERED_BLOCKS:])


def outer_blocks(network: nn.Module) -> list[nn.Module]:
    """Return the elements of the outermost lists of modules: the layers of a text encoder of transformers."""
    found = list[nn.Module]()
    for child in network.children():
        found.extend(child if isinstance(child, nn.ModuleList) else outer_blocks(child))
    return found


def local_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors in this process: of divided ones those of its share."""
    return _num_bytes(each.to_local() if isinstance(each, DTensor) else each for each in tensors)


def is_sharded(network: nn.Module) -> bool:
    """Return whether the weights of a network are divided."""
    return isinstance(network, FSDPModule)


def _whole_parameters(network: nn.Module) -> set[nn.Parameter]:
    """The parameters that are not divided: those of the adapter, and single numbers."""
    return {each for each in network.parameters() if each.requires_grad or not each.ndim}


def _frozen_parameters(network: nn.Module) -> set[nn.Parameter]:
    return set(network.parameters()) - _whole_parameters(network)


def _num_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _without_views(_part: nn.Module, _inputs: Any, output: Any) -> Any:
    """Copy outputs that are views of other tensors.

    FSDP gathers the weights for the backward pass by a hook on the output, which an operation in place on a
    view would lose.
    """
    if not torch.is_grad_enabled():
        return None
    return tree_map_only(Tensor, lambda tensor: tensor if tensor._base is None else tensor.clone(), output)


class _Released:
    """Release a part's weights after every forward pass before which they were not in memory.

    FSDP keeps them if the forward pass is a recomputation of the whole network in its backward pass: then all
    blocks would be in memory at once.
    """

    def __init__(self, part: nn.Module) -> None:
        self._was_released = False
        part.register_forward_pre_hook(self._before, prepend=True)
        part.register_forward_hook(self._after)

    def _before(self, part: nn.Module, _inputs: Any) -> None:
        self._was_released = any(isinstance(each, DTensor) for each in part.parameters())

    def _after(self, part: Any, _inputs: Any, _output: Any) -> None:
        if self._was_released:
            part.reshard()
