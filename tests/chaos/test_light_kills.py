"""Chains of kills of runs without Ray: driver and worker as one process, killed at any moment of a session.

What only Ray does (its processes, its checkpoints) is killed in `test_kills`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.campaign import NUM_KILLS, NUM_RAY, NUM_SERVER, Kill, add, assert_identical, chains, draw
from tests.helpers.light_session import prepare, start_session
from tests.helpers.mlflow_server import server
from tests.helpers.network import free_port
from tests.helpers.recipe import tiny_document
from vader_ray.orchestration.tracking.mlflow_runs import deliver_waiting

CHAIN = 5
"""Number of kills in a chain."""
LIGHT = range(NUM_KILLS - NUM_RAY - NUM_SERVER)


@dataclass
class Undisturbed:
    """A run that was not killed, and its recipe."""

    document: dict[str, Any]
    folder: Path
    seconds: float
    """Length of a whole run in one session, the latest that was measured: other work slows the machine."""


@pytest.fixture(scope="module")
def undisturbed(tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("light")
    uri = f"sqlite:///{folder}/mlflow.db"
    document = tiny_document(
        tiny_pipeline_folder,
        rewards=[{"reward": "brightness"}, {"reward": "sharpness"}],
        tracking={"uri": uri, "system_metrics": False},
    )
    prepare(document, folder / "runs", "first")
    for name in ("second", "straight"):  # the fork server starts with the second one
        row = session(document, folder, name, None)
        assert row.status == 0, (folder / "log").read_text()
    return Undisturbed(document, folder, row.seconds)


def session(
    document: dict[str, Any],
    folder: Path,
    name: str,
    seconds: float | None,
    kill: tuple[str, Callable[[BaseProcess], None]] = ("run without Ray", lambda process: process.kill()),
) -> Kill:
    """Start or continue a run; kill it, or another process, after a time (None: never)."""
    started = time.monotonic()
    process = start_session(document, folder / "runs", name, folder / "log")
    process.join(seconds)
    elapsed = round(time.monotonic() - started, 2)
    if killed := process.exitcode is None:
        kill[1](process)
    process.join()
    assert process.exitcode is not None
    printed = (folder / "log").read_text()
    last = (printed.strip().splitlines() or [""])[-1]
    return Kill(kill[0], killed, elapsed, process.exitcode, last, printed.count("Traceback"))


def run_chain(chain: str, num_kills: int, straight: Undisturbed) -> list[Kill]:
    """Kill sessions of a run; one that ended before its kill is compared, and the next one begins a run."""
    random, rows, pending = draw(chain), list[Kill](), list[Kill]()
    runs = num_killed = 0
    try:
        while num_killed < num_kills or pending:
            seconds = random.uniform(0, straight.seconds) if num_killed < num_kills else None
            row = session(straight.document, straight.folder, f"{chain}-{runs}", seconds)
            rows.append(row)
            pending.append(row)
            num_killed += row.killed
            assert row.tracebacks == 0, row
            if not row.killed:
                assert row.status == 0, row
                straight.seconds = row.seconds if pending == [row] else straight.seconds
                _compare(straight, f"{chain}-{runs}", pending)
                pending, runs = [], runs + 1
    finally:
        add(rows)
    return rows


def _compare(straight: Undisturbed, name: str, kills: list[Kill]) -> None:
    """Compare a run that has ended with the undisturbed one, and note the outcome with its kills."""
    runs = straight.folder / "runs"
    assert_identical(runs / name, runs / "straight")
    for kill in kills:
        kill.identical = True


@pytest.mark.slow
def test_a_run_killed_once_ends_equal_to_an_undisturbed_one(undisturbed: Undisturbed) -> None:
    assert all(row.identical for row in run_chain("once", 1, undisturbed))


@pytest.mark.chaos
@pytest.mark.parametrize("kills", chains(LIGHT, CHAIN), ids=str)
def test_chains_of_kills_end_equal_to_an_undisturbed_run(kills: range, undisturbed: Undisturbed) -> None:
    run_chain(f"light-{kills.start}", len(kills), undisturbed)


@pytest.mark.chaos
@pytest.mark.parametrize("kills", chains(range(NUM_SERVER), CHAIN), ids=str)
def test_runs_whose_mlflow_server_is_killed_and_started_again_end_equal(
    kills: range, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    random, port, rows = draw(f"server-{kills.start}"), free_port(), list[Kill]()
    tracking = {"uri": f"http://127.0.0.1:{port}", "system_metrics": False}
    straight = replace(undisturbed, document=undisturbed.document | {"tracking": tracking})
    with ExitStack() as stack:

        def restart(process: BaseProcess | None = None) -> None:
            stack.close()
            time.sleep(0 if process is None else random.uniform(0, 5))
            stack.enter_context(server(f"sqlite:///{tmp_path}/mlflow.db", port))

        restart()
        try:
            while sum(row.killed for row in rows) < len(kills):
                name = f"server-{kills.start}-{len(rows)}"
                seconds = random.uniform(0, straight.seconds)
                rows.append(
                    session(straight.document, straight.folder, name, seconds, ("MLflow server", restart))
                )
                _finish(straight, name, rows[-1])
        finally:
            add(rows)


def _finish(straight: Undisturbed, name: str, row: Kill) -> None:
    """Continue a run that ended with a sentence, deliver what waits, and compare."""
    assert row.tracebacks == 0, row
    if row.status != 0:
        assert "MLflow at" in row.last_line, row
        again = session(straight.document, straight.folder, name, None)
        assert again.status == 0, again
    deliver_waiting(straight.folder / "runs" / name)
    _compare(straight, name, [row])
