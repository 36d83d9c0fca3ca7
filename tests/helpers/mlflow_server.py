"""A real MLflow server in a process of its own, which can be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.helpers.paths import REPOSITORY
from tests.helpers.waiting import wait_until
from vader_ray.errors import UserError
from vader_ray.orchestration.tracking.server import check_server


def environment() -> dict[str, str]:
    """The environment of a process that uses MLflow and this tree's package."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


@contextmanager
def server(uri: str, port: int, command: str = "server") -> Iterator[str]:
    """Run ``mlflow server`` or ``mlflow ui`` on a SQLite database; at the end kill it, without a chance to
    tidy up."""
    arguments = ["--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    if command == "server":
        artifacts = Path(uri.removeprefix("sqlite:///")).parent / "server-artifacts"
        arguments += ["--artifacts-destination", str(artifacts)]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", command, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=environment(),
        text=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: _works(address), process=process)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _works(address: str) -> bool:
    try:
        check_server(address)
    except UserError:
        return False
    return True
