"""Chains of kills of runs on Ray: each process of a run at random moments; the end is the same bit for bit.

``VADER_RAY_CHAOS_KILLS`` sets the number of kills of the whole campaign, ``VADER_RAY_CHAOS_SEED`` selects
other moments, and ``VADER_RAY_CHAOS_TABLE`` names a JSON file that receives one row for each kill.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.chaos.campaign import NUM_RAY, Kill, add, assert_identical, chains, draw
from tests.helpers.paths import REPOSITORY
from tests.helpers.recipe import tiny_config, write_tiny
from tests.helpers.runs import CLI, kill_driver, record, start, tracked_step
from tests.helpers.waiting import wait_until

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


CHAIN = 3
"""Number of kills in a chain."""
WAIT_SECONDS = 60
"""Longest time that a kill waits for the start of its process."""


@dataclass
class Undisturbed:
    """A run that was not killed, and what the killed ones share with it."""

    recipe: Path
    folder: Path
    seconds: float = 0.0
    """Length of a whole run in one session, the latest that was measured: other work slows the machine."""


@pytest.fixture(scope="module")
def undisturbed(tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("kills")
    uri = f"sqlite:///{folder}/mlflow.db"
    changes = {"num_steps": NUM_STEPS, "tracking": {"uri": uri, "system_metrics": False}}
    local: list[dict[str, Any]] = [{**reward, "placement": None} for reward in REWARDS]
    record(tiny_config(tiny_pipeline_folder, rewards=local, **changes), folder, "straight")
    recipe = write_tiny(folder, tiny_pipeline_folder, rewards=REWARDS, **changes)
    return Undisturbed(recipe, folder)


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


def _session(straight: Undisturbed, name: str, process_name: str | None, seconds: float | None) -> Kill:
    """Start a run or continue it; kill a process after the time, and wait for the end.

    Args:
        process_name: None for a session that is left alone.
        seconds: None for the moment at which MLflow has the second step.
    """
    folder, run = straight.folder, straight.folder / "runs" / name
    log = folder / "log"
    log.write_text("")
    resume = ["--resume"] if (run / "run.json").exists() else []
    started = time.monotonic()
    command = [CLI, "train", str(straight.recipe), "--run-name", name, *resume]
    process = start(command, folder, log, _environment())
    killed = False
    if process_name is not None:
        if seconds is None:
            wait_until(
                lambda: tracked_step(folder / "mlflow.db", run) >= 2, process=process, explain=log.read_text
            )
        else:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=seconds)
        killed = _kill_when_there(process, process_name)
    elapsed = time.monotonic() - started
    status = process.wait(timeout=400)
    printed = log.read_text()
    last = (printed.strip().splitlines() or [""])[-1]
    return Kill(process_name or "none", killed, round(elapsed, 1), status, last, printed.count("Traceback"))


def _kill_when_there(process: subprocess.Popen[str], name: str) -> bool:
    """Kill a process of a run, which may have to be started first; whether it was killed."""
    until = time.monotonic() + WAIT_SECONDS
    while process.poll() is None and time.monotonic() < until:
        if _kill(process, name):
            return True
        time.sleep(0.2)
    return False


def _is_as_promised(row: Kill) -> bool:
    """Whether a session whose driver was not killed went on to its end, or ended with a sentence.

    While the driver connects to the control service, Ray's core ends it: docs/reliability.md, "Not promised".
    """
    if row.tracebacks or row.process in ("driver", "all"):
        return not row.tracebacks
    if row.process == "GCS" and "Failed to connect to GCS" in row.last_line:
        return True
    return row.status == 0 or (row.status == 1 and row.has_sentence and "--resume" in row.last_line)


def _chain(chain: str, kills: Sequence[tuple[str, float | None]], straight: Undisturbed) -> list[Kill]:
    """Kill a process of each session of a run, and compare the run's end.

    A session that has ended in spite of its kill, or before it, is compared, and the next one begins a run.

    Args:
        kills: name of the process, and the moment as a part of a session (None: after the second step).
    """
    rows, pending, waiting, runs = list[Kill](), list[Kill](), list(kills), 0
    try:
        while waiting or pending:
            process, part = waiting[0] if waiting else (None, None)
            seconds = None if part is None else part * straight.seconds
            row = _session(straight, f"{chain}-{runs}", process, seconds)
            rows.append(row)
            pending.append(row)
            waiting = waiting[1:] if row.killed else waiting
            assert row.killed or row.status == 0, row
            if row.status == 0:
                if pending == [row] and not row.killed:
                    straight.seconds = row.seconds
                run = straight.folder / "runs" / f"{chain}-{runs}"
                assert_identical(run, straight.folder / "runs" / "straight")
                for each in pending:
                    each.identical = True
                pending, runs = [], runs + 1
    finally:
        add(rows)
    assert not [row for row in rows if not _is_as_promised(row)]  # compared before, whatever they printed
    return [row for row in rows if row.killed]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.chaos
def test_a_run_whose_raylet_was_killed_ends_equal_to_an_undisturbed_one(undisturbed: Undisturbed) -> None:
    (row,) = _chain("raylet", [("raylet", None)], undisturbed)
    assert row.status == 1


@pytest.fixture(scope="module")
def measured(undisturbed: Undisturbed) -> Undisturbed:
    """The undisturbed run with the length of a session."""
    started = time.monotonic()
    row = _session(undisturbed, "whole", None, None)
    assert row.status == 0, row
    undisturbed.seconds = time.monotonic() - started
    return undisturbed


def _processes() -> list[str]:
    """The process of each kill: every one as often as the others, in random order."""
    names = [name for _, name in zip(range(NUM_RAY), cycle(PROCESSES), strict=False)]
    draw("processes").shuffle(names)
    return names


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.parametrize("index", range(-(-NUM_RAY // CHAIN)))
def test_chains_of_kills_end_equal_to_an_undisturbed_run(index: int, measured: Undisturbed) -> None:
    random = draw(f"ray-{index}")
    names = chains(_processes(), CHAIN)[index]
    _chain(f"ray-{index}", [(name, random.random()) for name in names], measured)
