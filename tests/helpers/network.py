"""Ports of this machine, and servers that fail in a known way."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer


def free_port() -> int:
    """A port of loopback on which nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@dataclass
class FailingServer:
    """A server that accepts connections and never sends a byte."""

    port: int
    num_connections: int = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def failing_server(*, hang: bool) -> Iterator[FailingServer]:
    """Serve on loopback: keep each connection open in silence if `hang`, else close it at once."""
    listener = socket.create_server(("127.0.0.1", 0))
    server, held = FailingServer(listener.getsockname()[1]), list[socket.socket]()

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # the test has ended
                return
            server.num_connections += 1
            if hang:
                held.append(connection)
            else:
                connection.close()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown(socket.SHUT_RDWR)  # wakes `accept`
        listener.close()
        thread.join()
        for connection in held:
            connection.close()


class _Refuse(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET  # noqa: N815 (names of the interface)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def refusing_server() -> Iterator[str]:
    """Serve HTTP on loopback; the answer is that the request is not authenticated. Yields the address."""
    with HTTPServer(("127.0.0.1", 0), _Refuse) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
