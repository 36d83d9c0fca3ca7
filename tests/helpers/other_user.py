"""Another user of this machine: what they get from ports, sockets and files of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import psutil
import pytest

from tests.helpers.paths import REPOSITORY

NOBODY = 65534
BECOME_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
only_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")

PROBE = """
import http.client, json, sys
from concurrent.futures import ThreadPoolExecutor
import grpc

def http_answer(port, method, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path, REQUESTS["body"], {"Content-Type": "application/json"})
        return str(connection.getresponse().status)
    except (OSError, http.client.HTTPException):
        return "no HTTP"
    finally:
        connection.close()

def grpc_answer(port, method):
    with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            answer = channel.unary_unary(method)(REQUESTS["message"].encode(), timeout=5)
            return f"OK, {len(answer)} bytes"
        except grpc.RpcError as error:
            return error.code().name

def probe(port):
    answers = {f"{method} {path}": http_answer(port, method, path) for method, path in REQUESTS["http"]}
    return port, answers | {method: grpc_answer(port, method) for method in REQUESTS["grpc"]}

REQUESTS = json.loads(sys.argv[1])
with ThreadPoolExecutor(16) as pool:
    print(json.dumps(dict(pool.map(probe, REQUESTS["ports"]))))
"""
HTTP = (
    ("GET", "/"),
    ("GET", "/metrics"),
    ("GET", "/api/version"),
    ("GET", "/api/jobs/"),
    ("GET", "/nodes?view=summary"),
    ("GET", "/logs"),
    ("POST", "/api/jobs/"),
    ("POST", "/api/job_agent/jobs/"),
    ("POST", "/get_or_create_runtime_env"),
    ("POST", "/get_runtime_envs_info"),
)
GRPC = (
    "/ray.rpc.InternalKVGcsService/InternalKVKeys",
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.JobInfoGcsService/AddJob",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.NodeManagerService/RequestWorkerLease",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.CoreWorkerService/PushTask",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.ReporterService/GetTraceback",
    "/ray.rpc.LogService/ListLogs",
)


def environment(**more: str) -> dict[str, str]:
    """Environment of a process that knows nothing of a cluster of ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "GLOO_"))}
    return kept | {"PYTHONPATH": str(REPOSITORY), "RAY_USAGE_STATS_ENABLED": "0"} | more


def run_as_nobody(code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python as another user who may read all files, since Python's own can be in a folder of ours."""
    reading = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
    command = [*BECOME_NOBODY, *reading, sys.executable, "-c", code, *arguments]
    nobody = environment(HOME="/nonexistent", **variables)
    return subprocess.run(command, env=nobody, cwd="/", capture_output=True, text=True, timeout=240)


def probe_as_nobody(ports: Iterable[int], *, body: str) -> dict[int, dict[str, str]]:
    """Answers of each port to HTTP and gRPC requests of another user, without a token."""
    requests = {"ports": sorted(ports), "body": body, "message": "", "http": HTTP, "grpc": GRPC}
    done = run_as_nobody(PROBE, json.dumps(requests))
    assert done.returncode == 0, done.stderr
    return {int(port): answers for port, answers in json.loads(done.stdout).items()}


def listening(pid: int) -> dict[int, tuple[str, set[str]]]:
    """Ports of a process and its descendants: the name of the process, and the addresses that it is on."""
    root = psutil.Process(pid)
    ports: dict[int, tuple[str, set[str]]] = {}
    for process in (root, *root.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            name = _short_name(process)
            for socket in process.net_connections("tcp"):
                if socket.status == psutil.CONN_LISTEN:
                    ports.setdefault(socket.laddr.port, (name, set()))[1].add(socket.laddr.ip)
    return ports


def _short_name(process: psutil.Process) -> str:
    command = process.cmdline() or [process.name()]
    scripts = [part.rpartition("/")[2] for part in command if part.endswith(".py")]
    return scripts[0] if scripts else command[0].rpartition("/")[2]


def call_as_nobody(function: Callable[[], Any]) -> Any:
    """Result of a function in a copy of this process that has become another user, without any right of
    ours."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        try:
            result = json.dumps({"result": function()})
        except BaseException as error:  # noqa: BLE001 (reported by the parent)
            result = json.dumps({"error": repr(error)})
        os.write(writing, result.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = json.loads(pipe.read())
    os.waitpid(child, 0)
    assert "error" not in answer, answer["error"]
    return answer["result"]
