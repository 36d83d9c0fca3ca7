"""Training along published backward paths: the same run on one worker and on two, and after a kill."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.recipe import tiny_document, write_tiny
from tests.helpers.sharded import train_sharded
from tests.helpers.training import Keeper, file_contents
from tests.helpers.workers import run_workers
from vader_ray.config import load
from vader_ray.training.distributed import WorkerGroup
from vader_ray.training.loop import train

SIZE = {"num_frames": 3, "height": 8, "width": 8, "num_inference_steps": 6, "guidance_scale": 3.0}
PATHS: dict[str, dict[str, Any]] = {
    "lagrange": {"sampling": SIZE | {"truncation": "lagrange"}},
    "velocity_matching": {
        "sampling": SIZE | {"truncation": "velocity_matching", "truncation_depth": 3},
        "algorithm": {"name": "vader", "reference_penalty": 1.0, "gradient_clip_quantile": 0.5},
    },
}
KILLED = """
import os, shutil, signal, sys
from vader_ray.config import load
from vader_ray.training.loop import train

def kill_after_two_steps(report):
    if report.step == 2:
        shutil.copytree(report.checkpoint, sys.argv[2])
        os.kill(os.getpid(), signal.SIGKILL)

train(load(sys.argv[1]), on_step=kill_after_two_steps)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", PATHS)
def test_a_killed_run_continues_as_the_straight_one(
    tiny_pipeline_folder: Path, tmp_path: Path, name: str
) -> None:
    changes = PATHS[name] | {"num_steps": 4, "checkpoint": {"every": 2}, "evaluation": {"every": 4}}
    recipe = write_tiny(tmp_path, tiny_pipeline_folder, **changes)
    straight, resumed = Keeper(tmp_path / "straight"), Keeper(tmp_path / "resumed")
    train(load(str(recipe)), on_step=straight)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(recipe), str(tmp_path / "killed")], check=False, timeout=300
    )
    assert killed.returncode == -9
    train(load(str(recipe)), on_step=resumed, resume_from=tmp_path / "killed")
    last, again = tmp_path / "straight" / "4", tmp_path / "resumed" / "4"
    assert file_contents(last / "adapter") == file_contents(again / "adapter")
    names = ("train/reward_mean", "train/grad_norm", "cost/denoiser_calls")
    assert straight.metrics(*names)[3:] == resumed.metrics(*names)


@pytest.mark.slow
@pytest.mark.parametrize("name", PATHS)
def test_two_workers_take_the_steps_of_one(tiny_pipeline_folder: Path, tmp_path: Path, name: str) -> None:
    """Up to the order of sums in float32."""
    document = tiny_document(
        tiny_pipeline_folder,
        **PATHS[name],
        num_steps=2,
        videos_per_step=2,
        evaluation={"every": 2, "num_videos": 2, "num_shown": 1},
        optimizer={"learning_rate": 0.001},
    )
    alone = train_sharded(WorkerGroup(), document, tmp_path / "alone")
    (tmp_path / "meetings").mkdir()
    two = document | {"runtime": {"num_workers": 2}}
    for worker in run_workers(train_sharded, 2, tmp_path / "meetings", two, tmp_path / "two"):
        for one, other in zip(worker.adapter, alone.adapter, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
        for metric in ("train/reward_mean", "train/grad_norm"):
            values = [each.metrics[-1][metric] for each in (worker, alone)]
            assert values[0] == pytest.approx(values[1], rel=1e-4)
        for cost in ("cost/denoiser_calls", "cost/reward_queries"):
            assert worker.metrics[-1][cost] == alone.metrics[-1][cost]
