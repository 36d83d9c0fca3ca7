"""Bytes that an evaluation moves per worker, measured on 2, 4 and 8 real processes and derived for 64.

    python -m benchmarks.evaluation                        # two minutes on two cores, 400 MB per process
    python -m benchmarks.evaluation --workers "" --num-shown 4 --num-frames 81 --height 480 --width 832

Each process has its share of 64 evaluated held-out videos and exchanges them over gloo as an evaluation does:
frames of the shown videos and features to worker 0, numbers to every worker. The bytes are those that the
kernel counts on the TCP connections of the process (``TCP_INFO``) during the exchange. "all to all" gathers
everything on every worker, padded to the largest share, as `torch.distributed.all_gather_object` does.
"""

from __future__ import annotations

import json
import os
import pickle
import socket
import struct
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import distributed, multiprocessing

from vader_ray.training.distributed import WorkerGroup
from vader_ray.training.evaluation import EvaluatedVideo
from vader_ray.training.events import Video

NUM_VIDEOS = 64
DERIVED_FOR = 64


Shape: TypeAlias = tuple[int, int, int, int]
"""Frames, height and width of a video, and number of videos that are shown."""


def evaluated(index: int, shape: Shape) -> EvaluatedVideo:
    """Return a held-out video with the sizes of two rewards, two metrics and two kinds of features."""
    scores = {"hps": 0.5 + index, "aesthetic": 4.5 + index, "objective": 0.5 + index}
    prompt = f"a red circle moving left, number {index}"
    *size, num_shown = shape
    frames = np.zeros((*size, 3), np.uint8)
    return EvaluatedVideo(
        prompt=prompt,
        scores=scores,
        metric_values={"motion": 0.1, "caption_accuracy": 1.0},
        features={"diversity": _thumbnail(shape), "distance_to_base": _thumbnail(shape)},
        shown=Video(prompt, index, scores, frames) if index < num_shown else None,
    )


def _thumbnail(shape: Shape) -> torch.Tensor:
    """Return pixels of the size of `vader_ray.metrics.core.thumbnails` for a video of this shape."""
    frames, height, width, _ = shape
    factor = -(-min(height, width) // 32)
    return torch.zeros(min(frames, 16) * 3 * (height // factor) * (width // factor), dtype=torch.uint8)


def moved_bytes() -> dict[str, int]:
    """Return the bytes that this process's TCP connections have received and sent so far."""
    totals = {"received": 0, "sent": 0}
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # no socket, or none of TCP
            with socket.socket(fileno=os.dup(int(descriptor))) as connection:
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            acknowledged, received = struct.unpack_from("QQ", info, 120)  # linux/tcp.h: struct tcp_info
            totals = {"received": totals["received"] + received, "sent": totals["sent"] + acknowledged}
    return totals


def _during(exchange: Callable[[], object]) -> dict[str, int]:
    distributed.barrier()
    before = moved_bytes()
    exchange()
    distributed.barrier()
    return {name: value - before[name] for name, value in moved_bytes().items()}


def _worker(rank: int, num_workers: int, folder: str, shape: Shape) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting-{num_workers}"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=num_workers)
    group = WorkerGroup(rank, num_workers)
    own = [evaluated(index, shape) for index in group.share(NUM_VIDEOS)]
    numbers = [(video.scores, video.metric_values) for video in map(_small, range(NUM_VIDEOS))]

    def as_now() -> None:
        group.gather_on_first(own)
        group.broadcast(numbers)

    _during(as_now)  # connects the processes
    measured = {"now": _during(as_now), "all to all": _during(lambda: group.gather(own))}
    (Path(folder) / f"{num_workers}-{rank}.json").write_text(json.dumps(measured))
    distributed.destroy_process_group()


def _small(index: int) -> EvaluatedVideo:
    return evaluated(index, (1, 1, 1, 0))


def measure(num_workers: int, shape: Shape) -> list[dict[str, Any]]:
    """Return the bytes of each worker's exchange, by rank."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_worker, (num_workers, folder, shape), nprocs=num_workers)
        return [
            json.loads((Path(folder) / f"{num_workers}-{rank}.json").read_text())
            for rank in range(num_workers)
        ]


def derive(num_workers: int, shape: Shape) -> list[dict[str, Any]]:
    """Return the bytes of each worker's exchange from the pickled sizes of the videos."""
    groups = [WorkerGroup(rank, num_workers) for rank in range(num_workers)]
    shares = [
        len(pickle.dumps([evaluated(index, shape) for index in group.share(NUM_VIDEOS)])) for group in groups
    ]
    numbers = len(pickle.dumps([(v.scores, v.metric_values) for v in map(_small, range(NUM_VIDEOS))]))
    all_to_all = {"received": (num_workers - 1) * max(shares), "sent": (num_workers - 1) * max(shares)}
    first = {"received": sum(shares[1:]), "sent": numbers * min(num_workers - 1, 6)}
    others = [{"received": numbers, "sent": share} for share in shares[1:]]
    return [{"now": each, "all to all": all_to_all} for each in (first, *others)]


def main(
    workers: str = "2,4,8",
    num_shown: Annotated[int, typer.Option(min=0)] = NUM_VIDEOS,
    num_frames: Annotated[int, typer.Option(min=1)] = 16,
    height: Annotated[int, typer.Option(min=8)] = 64,
    width: Annotated[int, typer.Option(min=8)] = 64,
) -> None:
    """Print one row per number of workers."""
    shape = (num_frames, height, width, num_shown)
    table = Table(
        "workers",
        "worker 0 receives",
        "another receives",
        "another sends at most",
        "all to all: each receives",
        title=f"MB for {NUM_VIDEOS} videos, {num_shown} shown, {num_frames} × {height} × {width}",
    )
    for count in map(int, filter(None, workers.split(","))):
        table.add_row(str(count), *_cells(measure(count, shape)))
    table.add_row(f"{DERIVED_FOR} (derived)", *_cells(derive(DERIVED_FOR, shape)))
    Console(highlight=False, width=130).print(table)


def _cells(rows: list[dict[str, Any]]) -> list[str]:
    first, *others = (row["now"] for row in rows)
    numbers = (
        first["received"],
        max(row["received"] for row in others),
        max(row["sent"] for row in others),
        max(row["all to all"]["received"] for row in rows),
    )
    return [f"{number / 1e6:.3g}" for number in numbers]


if __name__ == "__main__":
    typer.run(main)
