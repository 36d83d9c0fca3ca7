"""Collective operations of a run's workers, the same for one process and for many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from vader_ray.config import RuntimeConfig
from vader_ray.types import VIDEO_MESH

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class WorkerGroup:
    """The workers of a run, from the point of view of one of them.

    With more than one worker, torch's default process group must be initialised.
    """

    rank: int = 0
    """Index of this worker; worker 0 writes files."""
    world_size: int = 1
    """Number of workers."""
    workers_per_video: int = 1
    """Number of consecutive workers that compute the same videos together (`RuntimeConfig`); the first of
    each such group reports on its videos."""

    def of_recipe(self, runtime: RuntimeConfig) -> WorkerGroup:
        """Return the same worker in the groups of a recipe; fewer workers compute each video alone."""
        is_whole = self.world_size >= runtime.num_workers
        return replace(self, workers_per_video=runtime.workers_per_video if is_whole else 1)

    @property
    def is_first_of_video(self) -> bool:
        """Whether this worker reports on its videos."""
        return self.rank % self.workers_per_video == 0

    def sum_(self, tensors: Sequence[Tensor], dtype: torch.dtype | None = None) -> None:
        """Replace every tensor by its sum over the workers, with one all-reduce.

        Args:
            tensors: of equal shapes on all workers.
            dtype: of the numbers that are sent and added; by default the tensors' own.
        """
        if self.world_size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        flat = flat if dtype is None else flat.to(dtype)
        distributed.all_reduce(flat)
        totals = flat.split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(
            list(tensors), [total.view_as(tensor) for tensor, total in zip(tensors, totals, strict=True)]
        )

    def gather(self, own: Sequence[T]) -> list[T]:
        """Return the items of all workers by rank, on every worker. Items are pickled: keep them small.

        Of workers that compute the same videos only the first gives its items.
        """
        if self.world_size == 1:
            return list(own)
        parts: list[Sequence[T]] = [()] * self.world_size
        distributed.all_gather_object(parts, own if self.is_first_of_video else ())
        return [item for part in parts for item in part]

    def gather_on_first(self, own: Sequence[T]) -> list[T]:
        """Return the items of all workers by rank on worker 0, and an empty list on the others.

        Each worker sends its own items alone, in as many bytes as they have; of workers that compute the same
        videos only the first does.
        """
        if self.rank > 0:
            if self.is_first_of_video:
                distributed.send_object_list([own], dst=0)
            return []
        items = list(own)
        for rank in range(self.workers_per_video, self.world_size, self.workers_per_video):
            received: list[Sequence[T]] = [()]
            distributed.recv_object_list(received, src=rank)
            items += received[0]
        return items

    def broadcast(self, value: T) -> T:
        """Return worker 0's value on every worker. It is pickled: keep it small."""
        if self.world_size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]

    def mesh(self, size: int, device: torch.device) -> DeviceMesh:
        """Return the mesh of this worker and its `peers`; all workers call it, with the same size."""
        if not distributed.is_initialized():
            store = distributed.HashStore()  # type: ignore[attr-defined]
            distributed.init_process_group(store=store, rank=0, world_size=1)
        shape = (self.world_size // size, size)
        return init_device_mesh(device.type, shape, mesh_dim_names=("groups", "workers"))["workers"]

    def video_mesh(self, runtime: RuntimeConfig, device: torch.device) -> DeviceMesh:
        """Return the mesh of all workers by video, branch of guidance and tokens; all of them call it."""
        branches = runtime.workers_per_video // runtime.context_parallel
        shape = (self.world_size // self.workers_per_video, branches, 1, runtime.context_parallel)
        kind = "cuda" if device.type == "cuda" else "cpu"
        return init_device_mesh(kind, shape, mesh_dim_names=VIDEO_MESH)

    def peers(self, size: int) -> list[WorkerGroup]:
        """Return each worker of this one's group of ``size`` consecutive workers, as it sees the run."""
        first = self.rank - self.rank % size
        ranks = range(first, min(first + size, self.world_size))
        return [replace(self, rank=rank) for rank in ranks]

    def share(self, num_items: int, group_size: int = 1) -> range:
        """Return the indices of this worker's contiguous share of ``num_items``.

        Shares differ by one group at most. Workers that compute the same videos have the same share.

        Args:
            num_items: number of items of all workers, a multiple of ``group_size``.
            group_size: number of consecutive items that stay together.
        """
        num_groups = num_items // group_size
        num_shares, index = self.world_size // self.workers_per_video, self.rank // self.workers_per_video
        first, last = (num_groups * each // num_shares for each in (index, index + 1))
        return range(first * group_size, last * group_size)
