"""The workers of a run, as the training loop sees them: a sum and a gather, the same for one process and for many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Group:
    """This worker's place among ``world_size`` workers; more than one need an initialised process group."""

    rank: int = 0
    world_size: int = 1

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace every tensor by its sum over the workers, with one all-reduce."""
        if self.world_size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def gather(self, mine: Sequence[T]) -> list[T]:
        """The items of all workers, by rank, on every worker. Items are pickled: keep them small."""
        if self.world_size == 1:
            return list(mine)
        parts: list[Sequence[T]] = [()] * self.world_size
        distributed.all_gather_object(parts, mine)
        return [item for part in parts for item in part]

    def share(self, num_items: int) -> range:
        """The contiguous share of ``num_items`` that belongs to this worker."""
        size = -(-num_items // self.world_size)
        return range(min(self.rank * size, num_items), min((self.rank + 1) * size, num_items))
