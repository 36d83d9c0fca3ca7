"""Memory of tensors on devices that have no allocator to ask."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """Bytes of tensors made inside and still alive, now and at the peak: ``max_memory_allocated`` for a device without one.

    Sees every operation, also those of the backward pass and of recomputations; not the scratch space within a kernel.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._alive = set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [item for item in tree_leaves(result) if isinstance(item, Tensor)]
        given = {item.untyped_storage()._cdata for item in tree_leaves((args, kwargs)) if isinstance(item, Tensor)}
        for storage in (tensor.untyped_storage() for tensor in made):
            if storage._cdata not in given | self._alive:  # views and in-place results bring no memory
                self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        self._alive.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._release, storage._cdata, storage.nbytes())

    def _release(self, storage: int, num_bytes: int) -> None:
        self._alive.discard(storage)
        self.now -= num_bytes
