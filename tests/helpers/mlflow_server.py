"""A real MLflow server in a process of its own, which can be killed."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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


Reply = tuple[int, bytes]


def _handler(
    address: str, instead: Callable[[BaseHTTPRequestHandler], Reply | None]
) -> type[BaseHTTPRequestHandler]:
    """A handler that passes requests on to a server, unless `instead` has a reply of its own."""

    class Proxy(BaseHTTPRequestHandler):
        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, content = instead(self) or self._reply_of_server(body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _reply_of_server(self, body: bytes) -> Reply:
            headers = {"Content-Type": self.headers.get("Content-Type", "application/json")}
            request = Request(address + self.path, body or None, headers, method=self.command)
            try:
                with urlopen(request) as response:
                    return response.status, response.read()
            except HTTPError as error:
                return error.code, error.read()

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _forward  # noqa: N815  http.server's names

        def log_message(self, format: str, *arguments: object) -> None:
            """Write nothing to the tests' output."""

    return Proxy


@contextmanager
def _serve(port: int, handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """Serve on a port of loopback (0: a free one); yield the port."""
    proxy = ThreadingHTTPServer(("127.0.0.1", port), handler)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        yield proxy.server_port
    finally:
        proxy.shutdown()
        proxy.server_close()


@contextmanager
def behind_password(address: str, user: str, password: str) -> Iterator[str]:
    """Serve an MLflow server to requests with this user and password alone; yield the address with both."""
    expected = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

    def refuse(request: BaseHTTPRequestHandler) -> Reply | None:
        return None if request.headers.get("Authorization") == expected else (401, b"no user and password")

    with _serve(0, _handler(address, refuse)) as port:
        yield f"http://{user}:{password}@127.0.0.1:{port}"


class FaultyProxy:
    """A proxy of an MLflow server that fails on command."""

    def __init__(self, address: str) -> None:
        self._handler = _handler(address, self._fail)
        self._fault: str | None = None
        self._mended = threading.Event()
        self._listening = ExitStack()
        self._port = self._listening.enter_context(_serve(0, self._handler))

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def break_down(self, fault: str) -> None:
        """Fail from now on: ``refuse`` connections, ``hang`` without a byte, or reply with ``500``."""
        self._fault = fault
        self._mended.clear()
        if fault == "refuse":
            self._listening.close()

    def mend(self) -> None:
        """Work again."""
        if self._fault == "refuse":
            self._listening.enter_context(_serve(self._port, self._handler))
        self._fault = None
        self._mended.set()

    def close(self) -> None:
        """End the proxy."""
        self._mended.set()
        self._listening.close()

    def _fail(self, request: BaseHTTPRequestHandler) -> Reply | None:
        if self._fault == "hang":
            self._mended.wait()
            request.close_connection = True
            return 503, b""
        return (500, b"a fault of the test") if self._fault == "500" else None


def _works(address: str) -> bool:
    try:
        check_server(address)
    except UserError:
        return False
    return True
