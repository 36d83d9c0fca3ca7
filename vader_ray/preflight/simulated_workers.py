"""Count one of several workers that compute the same videos, in one process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore  # registers the backend

from vader_ray.config import RuntimeConfig
from vader_ray.training.distributed import WorkerGroup


@contextmanager
def workers_of_a_video(runtime: RuntimeConfig) -> Iterator[WorkerGroup]:
    """Yield the first of the workers of a video; inside the context its collectives return at once.

    Their results have the right sizes and no values, as all tensors of the meta device.
    """
    size = runtime.workers_per_video
    if size == 1:
        yield WorkerGroup()
        return
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    try:
        yield WorkerGroup(0, size)
    finally:
        distributed.destroy_process_group()
