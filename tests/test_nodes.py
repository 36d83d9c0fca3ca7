"""Runs on several Ray nodes (processes of this machine): what a lost node does to a run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster
from safetensors.torch import load_file

from tests.recipe import write_tiny
from vader_ray.orchestration.queries import read_queries
from vader_ray.orchestration.storage import subfolders

pytestmark = [pytest.mark.ray, pytest.mark.slow]
CLI = str(Path(sys.executable).parent / "vader-ray")
NUM_STEPS = 12


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that runs drivers only, and two nodes with one CPU each."""
    os.environ["RAY_AUTH_MODE"] = "disabled"  # processes of this machine, closed at the end
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        made.add_node(num_cpus=1)
    made.wait_for_nodes()
    yield made
    made.shutdown()
    del os.environ["RAY_AUTH_MODE"]


@pytest.fixture(scope="module")
def straight(cluster: Cluster, tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An undisturbed run of two workers on the two nodes: where it happened, and its recipe."""
    folder = tmp_path_factory.mktemp("nodes")
    recipe = write_tiny(folder, tiny_pipeline_folder, num_steps=NUM_STEPS)
    process = _start(cluster, folder, recipe, "straight")
    assert process.wait(timeout=500) == 0, (folder / "straight.log").read_text()
    return folder, recipe


def _start(cluster: Cluster, folder: Path, recipe: Path, name: str, *more: str) -> subprocess.Popen[str]:
    command = [CLI, "train", str(recipe), "--workers", "2", "--run-name", name, "--storage", str(folder / "shared"), *more]
    with (folder / f"{name}.log").open("w") as log:
        environment = os.environ | {"RAY_ADDRESS": cluster.address}
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, text=True, env=environment)


def _lose_a_node(cluster: Cluster, folder: Path, name: str, process: subprocess.Popen[str]) -> None:
    """Kill a node in the middle of a step, once there is a checkpoint."""
    until = time.monotonic() + 400
    while not [found for found in subfolders(str(folder / "shared" / name / "checkpoints")) if found.startswith("checkpoint_")]:
        assert process.poll() is None, (folder / f"{name}.log").read_text()
        assert time.monotonic() < until, "no checkpoint was written"
        time.sleep(0.05)
    time.sleep(0.3)
    assert process.poll() is None
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)


def _weights(run: Path) -> dict[str, Any]:
    return dict(load_file(run / "adapter" / "adapter_model.safetensors"))


def test_a_lost_node_is_replaced_and_the_adapter_is_the_same(cluster: Cluster, straight: tuple[Path, Path]) -> None:
    folder, recipe = straight
    process = _start(cluster, folder, recipe, "lost")
    _lose_a_node(cluster, folder, "lost", process)
    cluster.add_node(num_cpus=1)
    assert process.wait(timeout=500) == 0, (folder / "lost.log").read_text()
    run, expected = folder / "runs" / "lost", folder / "runs" / "straight"
    for part in ("adapter", "best_adapter"):
        for path in (expected / part).iterdir():
            assert (run / part / path.name).read_bytes() == path.read_bytes(), path
    assert any(value.any() for value in _weights(run).values())
    assert sorted(read_queries(run / "queries")["video"].to_pylist()) == list(range(NUM_STEPS * 4))
