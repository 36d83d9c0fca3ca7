"""Chains of kills: a random process of a run at a random moment; every run resumes to the same last bit.

``VADER_RAY_CHAOS_KILLS`` sets the number of kills of the campaign, ``VADER_RAY_CHAOS_SEED`` their choice, and
``VADER_RAY_CHAOS_TABLE`` a JSON file that receives one row for each kill.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from tests.helpers.paths import REPOSITORY
from tests.helpers.recipe import tiny_config, write_tiny
from tests.helpers.runs import CLI, adapter_files, kill_driver, record, start, tracked_step
from tests.helpers.waiting import wait_until
from vader_ray.orchestration.runs.query_log import read_queries

NUM_STEPS = 6
PROCESSES = {
    "driver": "",
    "worker": "RayTrainWorker",
    "controller": "TrainController",
    "raylet": "raylet/raylet",
    "GCS": "gcs/gcs_server",
    "reward actor": "ray::RewardActor",
    "all": "",
}
"""Process to kill, and the text of its command line."""
REWARDS: list[dict[str, Any]] = [
    {"reward": "brightness"},
    {"reward": "sharpness", "placement": {"actor": "pool", "num_cpus": 0}},
]


@dataclass(frozen=True)
class Kill:
    """One row of the campaign's table."""

    process: str
    killed: bool
    """Whether the process ran at this moment; otherwise the session was left alone."""
    seconds: float
    """Time from the start of the session to the kill."""
    status: int
    """Exit status of the session."""
    last_line: str
    """Last line that the session has printed."""
    tracebacks: int
    """Number of tracebacks in its output."""


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(REPOSITORY), "RAY_worker_niceness": "0"}


def _find(driver: int, text: str) -> psutil.Process | None:
    for child in psutil.Process(driver).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if text in " ".join(child.cmdline()[:2]):
                return child
    return None


def _kill(process: subprocess.Popen[str], name: str) -> bool:
    """Kill one process of a run, or all of them at once; whether it ran at this moment."""
    if name == "driver":
        kill_driver(process)
        return True
    below = psutil.Process(process.pid).children(recursive=True)
    found = [*below, psutil.Process(process.pid)] if name == "all" else [_find(process.pid, PROCESSES[name])]
    killed = False
    for each in filter(None, found):
        with suppress(psutil.NoSuchProcess):
            each.kill()
            killed = True
    return killed


def _session(folder: Path, recipe: Path, *, kill: str | None, seconds: float | None, resume: bool) -> Kill:
    """Start the run or continue it; kill a process after the time, and wait for the end.

    Args:
        seconds: None for the moment at which MLflow has the second step.
    """
    log = folder / "log"
    log.write_text("")
    command = [CLI, "train", str(recipe), "--run-name", "chain", *(["--resume"] if resume else [])]
    started = time.monotonic()
    process = start(command, folder, log, _environment())
    killed = False
    if kill is not None:
        if seconds is None:
            run = folder / "runs" / "chain"
            wait_until(
                lambda: tracked_step(folder / "mlflow.db", run) >= 2, process=process, explain=log.read_text
            )
        else:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=seconds)
        killed = process.poll() is None and _kill(process, kill)
    elapsed = time.monotonic() - started
    status = process.wait(timeout=400)
    printed = log.read_text()
    lines = printed.strip().splitlines() or [""]
    return Kill(kill or "none", killed, round(elapsed, 1), status, lines[-1], printed.count("Traceback"))


def _check_kill(kill: Kill) -> None:
    """A session whose driver was not killed goes on to its end, or ends with a sentence."""
    assert kill.tracebacks == 0, kill
    if not kill.killed:
        assert kill.status == 0, kill
    elif kill.process not in ("driver", "all"):
        assert kill.status in (0, 1), kill
        assert kill.status == 0 or "--resume" in kill.last_line, kill


def _check_equal(folder: Path) -> None:
    run, straight = folder / "runs" / "chain", folder / "runs" / "straight"
    assert adapter_files(run) == adapter_files(straight)
    videos = read_queries(run / "queries")["video"].to_pylist()
    assert sorted(videos) == list(range(NUM_STEPS * 4))
    run_id = json.loads((run / "summary.json").read_text())["mlflow_run_id"]
    history = MlflowClient(f"sqlite:///{folder}/mlflow.db").get_metric_history(run_id, "cost/reward_queries")
    assert [point.step for point in history] == list(range(NUM_STEPS + 1))


def _append(rows: list[Kill]) -> None:
    if table := os.environ.get("VADER_RAY_CHAOS_TABLE"):
        path = Path(table)
        known = json.loads(path.read_text()) if path.exists() else []
        path.write_text(json.dumps(known + [asdict(row) for row in rows], indent=1) + "\n")


def _chain(kills: Sequence[tuple[str, float | None]], weights: Path, folder: Path) -> list[Kill]:
    """Kill a process of each session of a run (its name, seconds as `_session`), and compare its end."""
    changes: dict[str, Any] = {"num_steps": NUM_STEPS, "rewards": REWARDS}
    recipe = write_tiny(folder, weights, **changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        local: list[dict[str, Any]] = [{**reward, "placement": None} for reward in REWARDS]
        record(tiny_config(weights, **{**changes, "rewards": local}), folder, "straight")
    rows = list[Kill]()
    run_file = folder / "runs" / "chain" / "run.json"
    for name, seconds in kills:
        rows.append(_session(folder, recipe, kill=name, seconds=seconds, resume=run_file.exists()))
        _append(rows[-1:])
        _check_kill(rows[-1])
    end = _session(folder, recipe, kill=None, seconds=0, resume=run_file.exists())
    assert end.status == 0, (rows, end, (folder / "log").read_text())
    _check_equal(folder)
    shutil.rmtree(folder / "runs")
    return rows


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_whose_raylet_was_killed_ends_equal_to_an_undisturbed_one(
    tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    (row,) = _chain([("raylet", None)], tiny_pipeline_folder, tmp_path)
    assert row.killed
    assert row.status == 1


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.parametrize("chain", range(-(-int(os.environ.get("VADER_RAY_CHAOS_KILLS", "10")) // 2)))
def test_chains_of_random_kills_end_equal_to_an_undisturbed_run(
    chain: int, tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    choice = random.Random(f"{os.environ.get('VADER_RAY_CHAOS_SEED', '0')}/{chain}")
    kills = [(name, choice.uniform(3, 45)) for name in choice.choices(list(PROCESSES), k=2)]
    _chain(kills, tiny_pipeline_folder, tmp_path)
