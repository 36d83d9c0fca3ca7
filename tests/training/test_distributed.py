"""Collective operations between two real processes, and what a step and an evaluation need of them."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
import torch

from tests.helpers.recipe import tiny_config
from vader_ray.training.checkpoint import State
from vader_ray.training.distributed import WorkerGroup
from vader_ray.training.evaluation import evaluate
from vader_ray.training.experiment import build
from vader_ray.training.loop import make_optimizer
from vader_ray.training.step import train_step

T = TypeVar("T")

SUM = """
import json, sys
import torch
from vader_ray.training.distributed import WorkerGroup
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
group, sums = WorkerGroup(rank, 2), []
for dtype in (None, torch.bfloat16):
    tensors = [torch.full((2, 2), 1.001 + rank), torch.tensor([0.25 * rank])]
    group.sum_(tensors, dtype)
    sums.append([tensor.flatten().tolist() for tensor in tensors] + [str(tensors[0].dtype)])
gathered = group.gather_on_first([["a"], ["b" * 1000, "c"]][rank])
print(json.dumps([sums, gathered, group.broadcast(f"from {rank}")]))
"""


@pytest.mark.slow
def test_sums_gathers_and_broadcasts_of_two_processes(tmp_path: Path) -> None:
    commands = [[sys.executable, "-c", SUM, str(rank), str(tmp_path)] for rank in range(2)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    printed = [json.loads(worker.communicate(timeout=120)[0]) for worker in workers]
    (sums, gathered, sent), (same, nothing, received) = printed
    assert (gathered, nothing) == (["a", "b" * 1000, "c"], [])
    assert sent == received == "from 0"
    assert sums == same
    exact, rounded = sums
    assert exact == [[float(torch.tensor(1.001) + torch.tensor(2.001))] * 4, [0.25], "torch.float32"]
    parts = [torch.tensor(value, dtype=torch.bfloat16) for value in (1.001, 2.001)]
    assert rounded == [[float(parts[0] + parts[1])] * 4, [0.25], "torch.float32"]


class WatchedGroup(WorkerGroup):
    """A worker that keeps what it sends to all others."""

    sent: ClassVar[list[Any]] = []

    def broadcast(self, value: T) -> T:
        self.sent.append(value)
        return super().broadcast(value)


def test_an_evaluation_sends_numbers_alone_to_every_worker(tiny_pipeline_folder: Path) -> None:
    config = tiny_config(tiny_pipeline_folder, prompts={"train": ["a"], "validation": ["b", "c"]})
    seen = evaluate(config, build(config), WatchedGroup())
    assert len(seen.videos) == 2
    assert seen.base_features.keys() == {"distance_to_base"}
    (sent,) = WatchedGroup.sent
    assert (sent.videos, sent.base_features) == ((), {})
    assert (sent.metrics, sent.scores, sent.metric_values) == (seen.metrics, seen.scores, seen.metric_values)
    assert len(pickle.dumps(sent)) < len(pickle.dumps(seen)) / 2


@pytest.mark.parametrize("num_workers", [2, 3, 7, 16])
def test_held_out_videos_are_shared_one_by_one(num_workers: int) -> None:
    shares = [WorkerGroup(rank, num_workers).share(11) for rank in range(num_workers)]
    assert [index for share in shares for index in share] == list(range(11))
    assert max(map(len, shares)) == -(-11 // num_workers)


class CountingGroup(WorkerGroup):
    """A worker that counts its gathers."""

    gathers = 0

    def gather(self, own: Sequence[T]) -> list[T]:
        type(self).gathers += 1
        return super().gather(own)


def test_an_update_needs_one_gather(tiny_pipeline_folder: Path) -> None:
    config = tiny_config(tiny_pipeline_folder, videos_per_step=2)
    experiment, state = build(config), State()
    CountingGroup.gathers = 0
    metrics, queries = train_step(
        config, experiment, make_optimizer(config, experiment), CountingGroup(), state, 0.0
    )
    assert CountingGroup.gathers == 1
    assert (len(queries), state.denoiser_calls) == (2, 2 * 5 * 2)
    assert metrics["train/reward_mean"] == sum(query.objective for query in queries) / 2
