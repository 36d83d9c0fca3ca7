"""Workers in processes of this machine, without Ray: gloo over a file.

The processes are forked from a server that has imported everything and runs nothing.
"""

from __future__ import annotations

import multiprocessing
import pickle
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import torch

from vader_ray.training.distributed import WorkerGroup

T = TypeVar("T")
PRELOADED = ["tests.helpers.sharded", "vader_ray.models.modelscope", "vader_ray.models.wan"]
TIMEOUT_SECONDS = 240


def run_workers(function: Callable[..., T], num_workers: int, folder: Path, *arguments: Any) -> list[T]:
    """Call ``function(group, *arguments)`` on every worker; return the results by rank.

    Args:
        function: of a module, so that it can be pickled; ``group`` is its `WorkerGroup`.
        folder: an existing one, for the file at which the workers meet.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    meeting = folder / f"meeting_{len(list(folder.iterdir()))}"
    pipes = [context.Pipe(duplex=False) for _ in range(num_workers)]
    processes = [
        context.Process(
            target=_work, args=(function, WorkerGroup(rank, num_workers), meeting, sender, arguments)
        )
        for rank, (_, sender) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    for _, sender in pipes:
        sender.close()
    try:
        results = [_receive(receiver, rank) for rank, (receiver, _) in enumerate(pipes)]
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    return results


def _receive(receiver: Connection, rank: int) -> Any:
    assert receiver.poll(TIMEOUT_SECONDS), f"worker {rank} did not answer"
    return pickle.loads(receiver.recv_bytes())  # a pipe's own pickles share tensors with a living process


def _work(
    function: Callable[..., Any], group: WorkerGroup, meeting: Path, sender: Connection, arguments: Any
) -> None:
    warnings.filterwarnings("error", message="FSDP2-wrapped module")
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=group.rank, world_size=group.world_size
    )
    sender.send_bytes(pickle.dumps(function(group, *arguments)))
    torch.distributed.destroy_process_group()
