"""Runs on several Ray nodes (processes of this machine): what a lost node does to a run."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster
from safetensors.torch import load_file

from tests.helpers.network import free_port
from tests.helpers.paths import REPOSITORY
from tests.helpers.recipe import tiny_config, write_tiny
from tests.helpers.runs import CLI, checkpoint_states, checkpoint_step, tracked_step
from tests.helpers.waiting import wait_until
from vader_ray.config import ExperimentConfig
from vader_ray.errors import UserError
from vader_ray.orchestration.clusters import connection as orchestration
from vader_ray.orchestration.runs.query_log import read_queries
from vader_ray.training.events import StepEvent
from vader_ray.training.loop import train

pytestmark = [
    pytest.mark.ray,
    pytest.mark.chaos,
    pytest.mark.filterwarnings(
        "ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"
    ),  # Ray's
    pytest.mark.filterwarnings(
        "ignore:Exception ignored in. <function Popen:pytest.PytestUnraisableExceptionWarning"
    ),  # as well
]
NUM_STEPS = 12
CLIP = "tests.helpers.served_rewards.Clip"
_SLOW_STEPS = 30
_EVERY = 4
"""Steps between two regular checkpoints."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that runs drivers only, and three nodes with one CPU each."""
    os.environ["RAY_AUTH_MODE"] = "disabled"  # processes of this machine, closed at the end
    os.environ["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "dashboard_port": free_port()})
    for _ in range(3):
        made.add_node(num_cpus=1)
    made.wait_for_nodes()
    yield made
    made.shutdown()
    gc.collect()  # the sockets that it leaves are found here, not when pytest ends
    del os.environ["RAY_AUTH_MODE"], os.environ["PYTHONPATH"]


@contextmanager
def _started(
    cluster: Cluster, folder: Path, recipe: Path, name: str, *more: str, command: Sequence[str] = ()
) -> Iterator[subprocess.Popen[str]]:
    """Training with two workers, or another command, with shared storage."""
    train = [CLI, "train", str(recipe), "--workers", "2", "--run-name", name]
    command = [*(command or train), "--storage", str(folder / "shared"), *more]
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
    run, checkpoints = folder / "runs" / name, folder / "shared" / name / "checkpoints"
    wait_until(
        lambda: tracked_step(folder / "mlflow.db", run) > checkpoint_step(checkpoints) > 0,
        process=process,
        explain=(folder / f"{name}.log").read_text,
    )
    cluster.remove_node(
        next(node for node in cluster.worker_nodes if _has_worker(node)), allow_graceful=False
    )


def _has(node: Any, actor: str) -> bool:
    """Whether an actor of this class lives there."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return any(actor in part for child in raylet.children(recursive=True) for part in child.cmdline())


def _has_worker(node: Any) -> bool:
    return _has(node, "RayTrainWorker")


def _drain(cluster: Cluster, node: Any) -> None:
    """As a cloud's notice makes it."""
    reason = [
        "--reason",
        "DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message",
        "spot",
        "--deadline-remaining-seconds",
        "30",
    ]
    drain = ["drain-node", "--address", cluster.address, "--node-id", node.node_id, *reason]
    subprocess.run([sys.executable, "-m", "ray.scripts.scripts", *drain], check=True)


def _weights(run: Path) -> dict[str, Any]:
    return dict(load_file(run / "adapter" / "adapter_model.safetensors"))


def test_a_lost_node_is_replaced_and_the_adapter_is_the_same(
    cluster: Cluster, tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    folder, recipe = tmp_path, write_tiny(tmp_path, tiny_pipeline_folder, num_steps=NUM_STEPS)
    with _started(cluster, folder, recipe, "lost") as process:
        _lose_a_node(cluster, folder, "lost", process)
        assert process.wait(timeout=500) == 0, (folder / "lost.log").read_text()
    expected = _adapter_of_one_worker(tiny_config(tiny_pipeline_folder, num_steps=NUM_STEPS))
    _assert_same(folder / "runs" / "lost", expected, NUM_STEPS)


@pytest.fixture(scope="module")
def slow(
    tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, dict[str, Any]]:
    """A folder, a recipe whose reward takes a second per video, and the adapter of one undisturbed worker."""
    folder = tmp_path_factory.mktemp("slow")
    changes: dict[str, Any] = {
        "num_steps": _SLOW_STEPS,
        "optimizer": {"learning_rate": 1e-4},
        "evaluation": {"every": 100, "num_videos": 2},
        "checkpoint": {"every": _EVERY, "keep": 100},
    }
    recipe = write_tiny(folder, tiny_pipeline_folder, rewards=[{"reward": CLIP, "seconds": 1.0}], **changes)
    fast = tiny_config(tiny_pipeline_folder, rewards=[{"reward": CLIP}], **changes)
    return folder, recipe, _adapter_of_one_worker(fast)


def _adapter_of_one_worker(config: ExperimentConfig) -> dict[str, Any]:
    adapters = list[dict[str, Any]]()

    def keep(report: StepEvent) -> None:
        if report.checkpoint is not None:
            adapters.append(_weights(report.checkpoint))

    train(config, on_step=keep)
    assert any(value.any() for value in adapters[-1].values())
    return adapters[-1]


def _assert_same(run: Path, expected: dict[str, Any], num_steps: int) -> None:
    ours = _weights(run)
    distance = sum(float((ours[name] - expected[name]).square().sum()) for name in expected) ** 0.5
    norm = sum(float(value.square().sum()) for value in expected.values()) ** 0.5
    assert distance < 1e-5 * norm  # summation order, amplified by the steps of Adam
    assert sorted(read_queries(run / "queries")["video"].to_pylist()) == list(range(num_steps * 4))


def _states(folder: Path, name: str) -> list[dict[str, float]]:
    return checkpoint_states(folder / "shared" / name / "checkpoints")


def _num_workers(folder: Path, name: str) -> list[int]:
    """How many workers made the steps between one checkpoint and the next."""
    states = _states(folder, name)
    return [
        round((two["worker_seconds"] - one["worker_seconds"]) / (two["train_seconds"] - one["train_seconds"]))
        for one, two in pairwise(states)
    ]


def test_workers_go_with_a_checkpoint_and_come_back_and_the_adapter_is_the_same(
    cluster: Cluster, slow: tuple[Path, Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that will be taken away is left with a checkpoint between two regular ones."""
    folder, recipe, expected = slow
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.5")
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30")  # Ray first waits so long for two
    while len(cluster.worker_nodes) > 2:  # no spare one
        cluster.remove_node(next(iter(cluster.worker_nodes)))
    log, run = folder / "elastic.log", folder / "runs" / "elastic"
    with _started(cluster, folder, recipe, "elastic", "runtime.min_workers=1") as process:
        wait_until(
            lambda: tracked_step(folder / "mlflow.db", run) % _EVERY == 1 and _states(folder, "elastic"),
            process=process,
            explain=log.read_text,
        )
        node = next(node for node in cluster.worker_nodes if _has_worker(node))
        _drain(cluster, node)
        wait_until(  # the step after the checkpoint begins when Ray Train has registered it
            lambda: any(
                state["step"] % _EVERY and tracked_step(folder / "mlflow.db", run) > state["step"]
                for state in _states(folder, "elastic")
            ),
            process=process,
            explain=log.read_text,
        )
        cluster.remove_node(node, allow_graceful=False)
        wait_until(lambda: 1 in _num_workers(folder, "elastic"), process=process, explain=log.read_text)
        cluster.add_node(num_cpus=1)
        assert process.wait(timeout=400) == 0, log.read_text()
    _assert_same(run, expected, _SLOW_STEPS)
    counted = _num_workers(folder, "elastic")
    assert [count for count, _ in groupby(counted)] == [2, 1, 2], counted


def test_a_trial_leaves_a_node_that_will_be_taken_away(
    cluster: Cluster, slow: tuple[Path, Path, dict[str, Any]]
) -> None:
    folder, recipe, _ = slow
    cluster.add_node(num_cpus=1)
    sweep = [sys.executable, str(REPOSITORY / "sweeps" / "hps_k_sweep.py"), "--recipe", str(recipe)]
    more = ["--num-trials", "1", "num_steps=8", "checkpoint.every=100"]
    with _started(cluster, folder, recipe, "sweep", *more, command=sweep) as process:
        log = folder / "sweep.log"
        wait_until(
            lambda: any(_has(node, "ImplicitFunc") for node in cluster.worker_nodes),
            process=process,
            explain=log.read_text,
        )
        (run,) = folder.glob("runs/hps_k_sweep-*/K=1")
        stored = folder / "shared" / run.parent.name / run.name
        wait_until(
            lambda: tracked_step(folder / "mlflow.db", run) >= 2, process=process, explain=log.read_text
        )
        assert not list(stored.glob("checkpoints/step-*"))
        node = next(node for node in cluster.worker_nodes if _has(node, "ImplicitFunc"))
        _drain(cluster, node)
        wait_until(lambda: list(stored.glob("checkpoints/step-*")), process=process, explain=log.read_text)
        cluster.remove_node(node, allow_graceful=False)
        assert process.wait(timeout=400) == 0, (folder / "sweep.log").read_text()
    assert json.loads((run / "summary.json").read_text())["status"] == "completed"
    assert sorted(read_queries(run / "queries")["video"].to_pylist()) == list(range(8 * 4))


def test_missing_nodes_are_waited_for(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    num_nodes = len(cluster.worker_nodes)
    machine = {"num_workers": num_nodes + 1, "use_gpu": False}
    config = tiny_config(tmp_path, videos_per_step=num_nodes + 1, runtime=machine)
    with (
        pytest.raises(UserError, match=f"has {num_nodes}; lower --workers"),
        orchestration.connected(config),
    ):
        pass
    num_cpus = list[float]()

    def connect() -> None:
        waiting = tiny_config(tmp_path, videos_per_step=num_nodes + 1, runtime=machine | {"wait_minutes": 5})
        with orchestration.connected(waiting):
            num_cpus.append(ray.cluster_resources()["CPU"])

    thread = threading.Thread(target=connect)
    thread.start()
    wait_until(ray.is_initialized)
    cluster.add_node(num_cpus=1)
    thread.join(timeout=300)
    assert num_cpus == [num_nodes + 1]
