"""A real MLflow server in a process of its own, which can be killed."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

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


@contextmanager
def behind_password(address: str, user: str, password: str) -> Iterator[str]:
    """Serve an MLflow server to requests with this user and password alone; yield the address with both."""
    expected = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

    class Proxy(BaseHTTPRequestHandler):
        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Authorization") != expected:
                return self._answer(401, b"no user and password")
            headers = {"Content-Type": self.headers.get("Content-Type", "application/json")}
            request = Request(address + self.path, body or None, headers, method=self.command)
            try:
                with urlopen(request) as response:
                    self._answer(response.status, response.read())
            except HTTPError as error:
                self._answer(error.code, error.read())

        def _answer(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _forward  # noqa: N815  http.server's names

        def log_message(self, format: str, *arguments: object) -> None:
            """Write nothing to the tests' output."""

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        yield f"http://{user}:{password}@127.0.0.1:{proxy.server_port}"
    finally:
        proxy.shutdown()
        proxy.server_close()


def _works(address: str) -> bool:
    try:
        check_server(address)
    except UserError:
        return False
    return True
