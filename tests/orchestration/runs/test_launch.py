"""Runs in real Ray processes: worker counts, lost workers, a killed driver, results in MLflow and on disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from mlflow import MlflowClient
from ray.cluster_utils import Cluster
from safetensors.torch import load_file

from tests.helpers.network import free_port
from tests.helpers.other_user import listening
from tests.helpers.paths import REPOSITORY
from tests.helpers.recipe import FIRING_GUARD, FOUR_PROMPTS, validated_on, write_tiny
from tests.helpers.runs import CLI, adapter_files, checkpoint_step, kill_driver, start, tracked_step
from tests.helpers.waiting import wait_until
from vader_ray.config import load
from vader_ray.orchestration.runs.launch import warn_without_guard
from vader_ray.orchestration.runs.query_log import read_queries

pytestmark = [pytest.mark.ray, pytest.mark.slow]
NUM_STEPS = 12


def _train(folder: Path, recipe: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [CLI, "train", str(recipe), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def _adapter(run: Path) -> torch.Tensor:
    return torch.cat(
        [
            value.flatten()
            for _, value in sorted(load_file(run / "adapter" / "adapter_model.safetensors").items())
        ]
    )


def _steps(folder: Path, run: Path, metric: str) -> list[int]:
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    return [
        point.step
        for point in client.get_metric_history(
            json.loads((run / "run.json").read_text())["mlflow_run_id"], metric
        )
    ]


def _assert_recorded_exactly_once(folder: Path, run: Path, num_steps: int, videos_per_step: int) -> None:
    assert _steps(folder, run, "cost/reward_queries") == list(range(num_steps + 1))
    assert _steps(folder, run, "train/reward_mean") == list(range(1, num_steps + 1))
    assert sorted(read_queries(run / "queries")["video"].to_pylist()) == list(
        range(num_steps * videos_per_step)
    )


@pytest.fixture(scope="module")
def straight(tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """An undisturbed run on one worker: where it happened, its recipe and what it printed."""
    folder = tmp_path_factory.mktemp("straight")
    recipe = write_tiny(folder, tiny_pipeline_folder, num_steps=NUM_STEPS)
    return folder, recipe, _train(folder, recipe, "--run-name", "straight").stdout


def test_a_run_leaves_its_results_and_prints_their_folder_last(straight: tuple[Path, Path, str]) -> None:
    folder, _, printed = straight
    run = folder / "runs" / "straight"
    assert printed.strip().splitlines()[-1] == str(run)
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["steps"], summary["reward_queries"], summary["num_workers"]) == (
        "completed",
        NUM_STEPS,
        NUM_STEPS * 4,
        1,
    )
    assert summary["denoiser_calls"] == NUM_STEPS * 4 * 5 * 2
    assert summary["metrics"]["eval/reward/brightness"] > summary["metrics_before"]["eval/reward/brightness"]
    assert all(Path(path).exists() for path in summary["videos"])
    assert len(summary["videos"]) == 2 * 5  # of the evaluations at 0, 3, 6, 9 and 12 steps
    assert Path(summary["before_after"]).stat().st_size > 1000


def test_drivers_import_no_models() -> None:
    """Their imports are seconds of every start, which only workers need."""
    drivers = ("runs.launch", "runs.dry_run", "sweeps.driver")
    imports = "; ".join(f"import vader_ray.orchestration.{name}" for name in drivers)
    check = f"import sys; {imports}; print(sorted({{'diffusers', 'peft'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_run_without_a_guard_states_it_in_one_line_and_in_its_summary(
    straight: tuple[Path, Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, recipe, printed = straight
    lines = printed.splitlines()
    (stated,) = [
        index
        for index, line in enumerate(lines)
        if line.startswith("no guard: no held-out metric is compared")
    ]
    assert "the best adapter is chosen by eval/objective; set eval_rewards or guard.metrics" in lines[stated]
    assert stated < min(index for index, line in enumerate(lines) if line.startswith("step "))
    summary = json.loads((folder / "runs" / "straight" / "summary.json").read_text())
    assert summary["guard_metrics"] == []

    guarded = load(str(recipe), ["guard.metrics=[eval/motion]"])
    warn_without_guard(guarded)
    assert capsys.readouterr().out.startswith("the guard cannot fire: on 2 validation prompts no fall is")
    prompts = json.dumps([f"a red circle, number {index}" for index in range(12)])
    enough = ["guard.metrics=[eval/motion]", f"prompts.validation={prompts}", "evaluation.num_videos=12"]
    warn_without_guard(load(str(recipe), enough))
    assert capsys.readouterr().out == ""
    assert guarded.guard_metrics() == ("eval/motion",)


def test_the_mlflow_run_is_complete(straight: tuple[Path, Path, str]) -> None:
    folder, _, _ = straight
    run = folder / "runs" / "straight"
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    stored = client.get_run(json.loads((run / "summary.json").read_text())["mlflow_run_id"])
    assert stored.info.status == "FINISHED"
    assert stored.data.params["sampling.truncation_depth"] == "1"
    wanted = {"train/reward/brightness", "train/grad_norm", "eval/reward/brightness", "eval/gain/brightness",
              "time/step_seconds", "memory/peak_gib", "cost/denoiser_calls", "cost/wall_seconds"}  # fmt: skip
    assert wanted <= stored.data.metrics.keys()
    top = {artifact.path for artifact in client.list_artifacts(stored.info.run_id)}
    assert {"recipe.yaml", "environment.txt", "adapter", "videos", "images", "queries",
            "before_after.png", "gallery.html"} <= top  # fmt: skip
    (model,) = client.search_logged_models(
        [stored.info.experiment_id], f"source_run_id = '{stored.info.run_id}'"
    )
    assert (model.name, str(model.status)) == ("best_adapter", "READY")
    assert stored.data.tags["vader_ray.command"].startswith("vader-ray train ")
    _assert_recorded_exactly_once(folder, run, NUM_STEPS, 4)


def test_two_workers_give_the_adapter_of_one_and_listen_on_no_port_that_others_reach(
    straight: tuple[Path, Path, str],
) -> None:
    folder, recipe, _ = straight
    command = [CLI, "train", str(recipe), "--run-name", "two", "--workers", "2"]
    process = start(command, folder, folder / "two.log")
    database, run = folder / "mlflow.db", folder / "runs" / "two"
    wait_until(
        lambda: tracked_step(database, run) >= 1, process=process, explain=(folder / "two.log").read_text
    )
    ports = listening(process.pid)
    assert process.wait(timeout=300) == 0, (folder / "two.log").read_text()
    assert any("RayTrainWorker" in name for name, _ in ports.values())
    loopback = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert {port: found for port, found in ports.items() if found[1] - loopback} == {}
    one, two = (_adapter(folder / "runs" / name) for name in ("straight", "two"))
    assert (one - two).norm() < 1e-5 * one.norm()  # summation order, amplified by the steps of Adam
    assert one.abs().max() > 0


def test_check_finds_bit_equal_gradients_on_both_workers(straight: tuple[Path, Path, str]) -> None:
    folder, recipe, _ = straight
    done = subprocess.run(
        [CLI, "check", str(recipe), "--workers", "2"], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "workers 2, with bit-identical gradients" in done.stdout
    assert "finite and not zero" in done.stdout


def _start_and_wait_for_a_step_after_a_checkpoint(
    folder: Path, recipe: Path, name: str, *more: str, at_least: int = 1
) -> subprocess.Popen[str]:
    process = start([CLI, "train", str(recipe), "--run-name", name, *more], folder, folder / f"{name}.log")
    _wait_for_a_step_after_a_checkpoint(folder, name, process, at_least=at_least)
    return process


def _wait_for_a_step_after_a_checkpoint(
    folder: Path, name: str, process: subprocess.Popen[str], *, at_least: int
) -> None:
    log, run = folder / f"{name}.log", folder / "runs" / name
    wait_until(
        lambda: tracked_step(folder / "mlflow.db", run) > checkpoint_step(run / "checkpoints") >= at_least,
        process=process,
        explain=log.read_text,
    )


def _worker_of(driver: int) -> psutil.Process:
    """The Ray Train worker below a driver."""
    found = [
        child
        for child in psutil.Process(driver).children(recursive=True)
        if any("RayTrainWorker" in part for part in child.cmdline())
    ]
    assert found, "no Ray Train worker was found below the driver"
    return found[0]


def test_a_run_that_is_interrupted_in_every_way_ends_as_if_nothing_had_happened(
    straight: tuple[Path, Path, str],
) -> None:
    """A worker is killed and replaced; SIGTERM ends the driver; the resumed driver is killed and its last
    checkpoint damaged; the run is resumed before it."""
    folder, recipe, _ = straight
    run, log = folder / "runs" / "interrupted", folder / "interrupted.log"
    process = _start_and_wait_for_a_step_after_a_checkpoint(folder, recipe, "interrupted")
    _worker_of(process.pid).kill()
    _wait_for_a_step_after_a_checkpoint(folder, "interrupted", process, at_least=4)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 130, log.read_text()
    _assert_ended_by_sigterm(folder, run, log.read_text())

    killed = _start_and_wait_for_a_step_after_a_checkpoint(
        folder, recipe, "interrupted", "--resume", at_least=6
    )
    kill_driver(killed)
    latest = sorted((run / "checkpoints").glob("checkpoint_*/state.json"))[-1].parent
    (latest / "optimizer.pt").write_bytes((latest / "optimizer.pt").read_bytes()[:-1])
    printed = _train(folder, recipe, "--run-name", "interrupted", "--resume").stdout
    assert f"{latest} is not a complete checkpoint: optimizer.pt is damaged; the run continues" in printed
    assert adapter_files(run) == adapter_files(folder / "runs" / "straight")
    _assert_recorded_exactly_once(folder, run, NUM_STEPS, 4)


def _assert_ended_by_sigterm(folder: Path, run: Path, printed: str) -> None:
    assert printed.splitlines()[-1] == "stopped; `--resume` continues from the last checkpoint"
    assert "Traceback" not in printed
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert summary["steps"] == checkpoint_step(run / "checkpoints") > 0
    stored = MlflowClient(f"sqlite:///{folder}/mlflow.db").get_run(summary["mlflow_run_id"])
    assert (stored.info.status, stored.data.tags["status"]) == ("KILLED", "interrupted")


def test_a_finished_run_is_not_repeated_and_other_settings_are_refused(
    straight: tuple[Path, Path, str],
) -> None:
    folder, recipe, _ = straight
    run = folder / "runs" / "straight"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    done = _train(folder, recipe, "--run-name", "straight")
    assert done.stdout.strip().splitlines()[-1] == str(run)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert "step " not in done.stdout
    other = subprocess.run(
        [CLI, "train", str(recipe), "seed=1", "--run-name", "straight"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert other.returncode == 2
    assert "the run 'straight' was started with other settings (seed)" in other.stderr


def test_an_error_of_a_worker_reaches_the_user_as_one_sentence(
    tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "flat.py").write_text(
        "class Reward:\n    granularity, unit = 'frame', 'none'\n"
        "    def __call__(self, frames, prompts):\n        return frames.detach().mean(dim=(1, 2, 3, 4))\n"
    )
    recipe = write_tiny(tmp_path, tiny_pipeline_folder, rewards=[{"reward": "lab.flat"}])
    done = subprocess.run(
        [CLI, "train", str(recipe), "--run-name", "flat"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=400,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr + done.stdout
    assert "reward 'flat' has no gradient" in done.stderr
    assert json.loads((tmp_path / "runs" / "flat" / "summary.json").read_text())["status"] == "failed"


def test_the_guard_stops_all_workers_and_says_why_everywhere(
    tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    recipe = write_tiny(
        tmp_path,
        tiny_pipeline_folder,
        guard=FIRING_GUARD | {"action": "stop"},
        prompts=validated_on(FOUR_PROMPTS),
        evaluation={"every": 1, "num_videos": 4},
    )
    printed = _train(tmp_path, recipe, "--run-name", "stopped", "--workers", "2").stdout
    run = tmp_path / "runs" / "stopped"
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["steps"], summary["reward_queries"]) == (
        "stopped",
        1,
        4,
    )  # between two checkpoints
    assert summary["alarms"] == [summary["stop_reason"]]
    assert summary["stop_reason"] in printed
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    stored = client.get_run(summary["mlflow_run_id"])
    assert (stored.info.status, stored.data.tags["status"]) == ("FINISHED", "stopped")
    assert stored.data.tags["vader_ray.guard"] == summary["stop_reason"]
    assert [point.value for point in client.get_metric_history(summary["mlflow_run_id"], "guard/fired")] == [
        0,
        1,
    ]
    written = (run / "summary.json").stat().st_mtime_ns
    _train(tmp_path, recipe, "--run-name", "stopped", "--workers", "2")
    assert (run / "summary.json").stat().st_mtime_ns == written  # it is over, not unfinished


@pytest.mark.chaos
def test_a_run_stays_with_its_cluster_when_another_is_started_on_the_machine(
    tiny_pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    reward = {"reward": "tests.helpers.served_rewards.Clip", "seconds": 1.0}
    changes: dict[str, Any] = {"num_steps": 10, "evaluation": {"every": 100, "num_videos": 2}}
    slow = write_tiny(tmp_path, tiny_pipeline_folder, rewards=[reward], **changes)
    command = [CLI, "train", str(slow), "--run-name", "first", "--workers", "2", "runtime.max_failures=0"]
    log, run, database = tmp_path / "first.log", tmp_path / "runs" / "first", tmp_path / "mlflow.db"
    first = start(command, tmp_path, log)
    try:
        wait_until(lambda: tracked_step(database, run) >= 1, process=first, explain=log.read_text)
        other = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "dashboard_port": free_port()})
        try:
            # Ray Train checks every second that its controller is alive; three steps take six seconds
            later = tracked_step(database, run) + 3
            wait_until(lambda: tracked_step(database, run) >= later, process=first, explain=log.read_text)
        finally:
            other.shutdown()
        assert first.wait(timeout=300) == 0, log.read_text()
    finally:
        first.kill()
        first.wait()
