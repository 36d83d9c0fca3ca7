"""Collective operations between two real processes, and how many a step needs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import pytest
import torch

from tests.helpers.recipe import tiny_config
from vader_ray.training.checkpoint import State
from vader_ray.training.distributed import WorkerGroup
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
print(json.dumps(sums))
"""


@pytest.mark.slow
def test_gradients_are_summed_in_their_own_precision_or_in_bfloat16(tmp_path: Path) -> None:
    commands = [[sys.executable, "-c", SUM, str(rank), str(tmp_path)] for rank in range(2)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    printed = [worker.communicate(timeout=120)[0] for worker in workers]
    assert printed[0] == printed[1]
    exact, rounded = json.loads(printed[0])
    assert exact == [[float(torch.tensor(1.001) + torch.tensor(2.001))] * 4, [0.25], "torch.float32"]
    parts = [torch.tensor(value, dtype=torch.bfloat16) for value in (1.001, 2.001)]
    assert rounded == [[float(parts[0] + parts[1])] * 4, [0.25], "torch.float32"]


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
