"""Runs on several Ray nodes (processes of this machine): what a lost node does to a run."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster
from safetensors.torch import load_file

from tests.recipe import tiny_config, write_tiny
from vader_ray.config import ConfigError
from vader_ray.orchestration import cluster as orchestration
from vader_ray.orchestration.queries import read_queries
from vader_ray.orchestration.storage import subfolders

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"),  # Ray's
]
CLI = str(Path(sys.executable).parent / "vader-ray")
NUM_STEPS = 12


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that runs drivers only, and three nodes with one CPU each."""
    os.environ["RAY_AUTH_MODE"] = "disabled"  # processes of this machine, closed at the end
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(3):
        made.add_node(num_cpus=1)
    made.wait_for_nodes()
    yield made
    made.shutdown()
    gc.collect()  # the sockets that it leaves are found here, not when pytest ends
    del os.environ["RAY_AUTH_MODE"]


@pytest.fixture(scope="module")
def straight(cluster: Cluster, tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An undisturbed run of two workers on two nodes: where it happened, and its recipe."""
    folder = tmp_path_factory.mktemp("nodes")
    recipe = write_tiny(folder, tiny_pipeline_folder, num_steps=NUM_STEPS)
    with _started(cluster, folder, recipe, "straight") as process:
        assert process.wait(timeout=500) == 0, (folder / "straight.log").read_text()
    return folder, recipe


@contextmanager
def _started(cluster: Cluster, folder: Path, recipe: Path, name: str, *more: str) -> Iterator[subprocess.Popen[str]]:
    command = [CLI, "train", str(recipe), "--workers", "2", "--run-name", name, "--storage", str(folder / "shared"), *more]
    with (folder / f"{name}.log").open("w") as log:
        environment = os.environ | {"RAY_ADDRESS": cluster.address}
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, text=True, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _lose_a_node(cluster: Cluster, folder: Path, name: str, process: subprocess.Popen[str]) -> None:
    """Kill a node that has a worker in the middle of a step, once there is a checkpoint."""
    until = time.monotonic() + 400
    while not [found for found in subfolders(str(folder / "shared" / name / "checkpoints")) if found.startswith("checkpoint_")]:
        assert process.poll() is None, (folder / f"{name}.log").read_text()
        assert time.monotonic() < until, "no checkpoint was written"
        time.sleep(0.05)
    time.sleep(0.3)
    assert process.poll() is None
    cluster.remove_node(next(node for node in cluster.worker_nodes if _has_worker(node)), allow_graceful=False)


def _has_worker(node: Any) -> bool:
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return any("RayTrainWorker" in part for child in raylet.children(recursive=True) for part in child.cmdline())


def _weights(run: Path) -> dict[str, Any]:
    return dict(load_file(run / "adapter" / "adapter_model.safetensors"))


def test_a_lost_node_is_replaced_and_the_adapter_is_the_same(cluster: Cluster, straight: tuple[Path, Path]) -> None:
    folder, recipe = straight
    with _started(cluster, folder, recipe, "lost") as process:
        _lose_a_node(cluster, folder, "lost", process)
        assert process.wait(timeout=500) == 0, (folder / "lost.log").read_text()
    run, expected = folder / "runs" / "lost", folder / "runs" / "straight"
    for part in ("adapter", "best_adapter"):
        for path in (expected / part).iterdir():
            assert (run / part / path.name).read_bytes() == path.read_bytes(), path
    assert any(value.any() for value in _weights(run).values())
    assert sorted(read_queries(run / "queries")["video"].to_pylist()) == list(range(NUM_STEPS * 4))


def test_a_run_goes_on_with_fewer_workers(cluster: Cluster, straight: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, recipe = straight
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30")  # Ray first waits so long for two
    while len(cluster.worker_nodes) > 2:  # no spare one
        cluster.remove_node(next(iter(cluster.worker_nodes)))
    with _started(cluster, folder, recipe, "fewer", "machine.min_workers=1") as process:
        _lose_a_node(cluster, folder, "fewer", process)
        assert process.wait(timeout=500) == 0, (folder / "fewer.log").read_text()
    ours, theirs = _weights(folder / "runs" / "fewer"), _weights(folder / "runs" / "straight")
    distance = sum(float((ours[name] - theirs[name]).square().sum()) for name in theirs) ** 0.5
    norm = sum(float(value.square().sum()) for value in theirs.values()) ** 0.5
    assert distance < 1e-5 * norm  # summation order, amplified by the steps of Adam
    assert sorted(read_queries(folder / "runs" / "fewer" / "queries")["video"].to_pylist()) == list(range(NUM_STEPS * 4))


def test_missing_nodes_are_waited_for(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    num_nodes = len(cluster.worker_nodes)
    machine = {"num_workers": num_nodes + 1, "use_gpu": False}
    config = tiny_config(tmp_path, videos_per_step=num_nodes + 1, machine=machine)
    with pytest.raises(ConfigError, match=f"has {num_nodes}; lower --workers"), orchestration.connected(config):
        pass
    entered = threading.Event()

    def connect() -> None:
        waiting = tiny_config(tmp_path, videos_per_step=num_nodes + 1, machine=machine | {"wait_minutes": 5})
        with orchestration.connected(waiting):
            entered.set()

    thread = threading.Thread(target=connect)
    thread.start()
    assert not entered.wait(timeout=10)
    cluster.add_node(num_cpus=1)
    assert entered.wait(timeout=120)
    thread.join()
