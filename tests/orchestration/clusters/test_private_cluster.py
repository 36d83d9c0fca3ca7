"""A real cluster of one driver, attacked by another user of the machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.helpers.paths import REPOSITORY
from vader_ray.orchestration.clusters import private_cluster

pytestmark = [pytest.mark.ray, pytest.mark.slow]

BECOME_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
only_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")

DRIVER = """
import json, os, sys, urllib.error, urllib.request
import ray
from ray.util.state import list_actors
from tests.helpers.recipe import tiny_config
from vader_ray.orchestration.clusters import connection

def environment():
    return {name: value for name, value in os.environ.items() if name.startswith(("RAY_AUTH", "GLOO"))}

def post_without_token(url):
    try:
        return urllib.request.urlopen(urllib.request.Request(url + "/api/jobs/", b"{}")).status
    except urllib.error.HTTPError as error:
        return error.code

before, tokens = environment(), []
for last in (False, True):
    with connection.connected(tiny_config("/tmp"), needs_state_api=not last):
        assert ray.get(ray.remote(lambda: 1).remote()) == 1
        tokens.append(os.environ["RAY_AUTH_TOKEN"])
        node = ray._private.worker._global_node
        if not last:
            assert ray.get(ray.remote(list_actors).remote()) == []
            assert post_without_token("http://" + node.webui_url) == 401
        else:
            assert not node.webui_url
            found = {"address": node.gcs_address, "session": node.get_session_dir_path(), "tokens": tokens}
            print(json.dumps(found | {"agent": node.dashboard_agent_listen_port}), flush=True)
            sys.stdin.readline()
print(json.dumps([before, environment()]), flush=True)
"""


@dataclass(frozen=True)
class PrivateCluster:
    """The second cluster of a driver that has had one before, in a process of its own."""

    driver: subprocess.Popen[str]
    address: str
    session: Path
    tokens: list[str]
    agent: int
    """Port of the node's dashboard agent."""


def _environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "GLOO_"))}
    return kept | {"PYTHONPATH": str(REPOSITORY), "RAY_USAGE_STATS_ENABLED": "0"} | more


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateCluster]:
    folder = tmp_path_factory.mktemp("driver")
    with (folder / "errors").open("w") as errors:
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER],
            cwd=folder, env=_environment(RAY_AUTH_TOKEN_PATH="/of/the/user"),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
    with driver:
        assert driver.stdout is not None
        try:
            line = driver.stdout.readline()
            assert line, (folder / "errors").read_text()
            found = json.loads(line)
            session = Path(found.pop("session"))
            yield PrivateCluster(driver, session=session, **found)
        finally:
            driver.kill()


def _listening(cluster: PrivateCluster) -> dict[int, set[str]]:
    """Ports of the driver and its child processes, with the addresses on which they listen."""
    root = psutil.Process(cluster.driver.pid)
    ports: dict[int, set[str]] = {}
    for process in (root, *root.children(recursive=True)):
        for socket in process.net_connections("tcp"):
            if socket.status == psutil.CONN_LISTEN:
                ports.setdefault(socket.laddr.port, set()).add(socket.laddr.ip)
    return ports


def test_every_port_is_on_the_loopback_interface(cluster: PrivateCluster) -> None:
    ports = _listening(cluster)
    assert int(cluster.address.rpartition(":")[2]) in ports
    outside = {
        port: found for port, found in ports.items() if found - {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    }
    assert outside == {}


def _as_nobody(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python as another user who may read all files, since Python's own can be in a folder of ours."""
    reading = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
    command = [*BECOME_NOBODY, *reading, sys.executable, "-c", code]
    nobody = _environment(HOME="/nonexistent", **environment)
    return subprocess.run(command, env=nobody, cwd="/", capture_output=True, text=True, timeout=240)


POST = """
import http.client, json, urllib.error, urllib.request
for port in {ports}:
    for path in ("/api/jobs/", "/api/job_agent/jobs/"):
        body = json.dumps({{"entrypoint": "touch {trace}"}}).encode()
        headers = {{"Content-Type": "application/json"}}
        sent = urllib.request.Request(f"http://127.0.0.1:{{port}}{{path}}", body, headers)
        try:
            print(port, path, urllib.request.urlopen(sent, timeout=5).status)
        except urllib.error.HTTPError as error:
            print(port, path, error.code)
        except (OSError, http.client.HTTPException) as error:
            print(port, path, type(error).__name__)
"""


@only_root
def test_another_user_cannot_post_a_job_to_any_port(cluster: PrivateCluster, tmp_path: Path) -> None:
    trace, ports = f"/tmp/vader_ray_{os.getpid()}", sorted(_listening(cluster))
    done = _as_nobody(POST.format(ports=ports, trace=trace))
    answers = [line.split() for line in done.stdout.splitlines()]
    assert len(answers) == 2 * len(ports), done.stderr
    if cluster.agent > 0:  # Ray gives the agent no port where another cluster has the usual one
        assert [str(cluster.agent), "/api/job_agent/jobs/", "401"] in answers
    # metrics are for everybody to read; their servers answer whatever is sent, and start nothing
    metrics = {port for port, path, answer in answers if path == "/api/jobs/" and answer == "200"}
    assert {answer for port, _, answer in answers if port not in metrics and answer.isdigit()} <= {
        "401",
        "404",
        "405",
    }
    time.sleep(2)
    assert not Path(trace).exists()


LOOPBACK = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # otherwise Ray looks for the cluster on the network's address
    "RAY_NUM_REDIS_GET_RETRIES": "2",  # so many attempts, a second each
}

CONNECT = """
import logging, os, ray
ray.init(address="{address}", logging_level=logging.ERROR)
print("inside", ray.get(ray.remote(os.getuid).remote()))
"""


@only_root
@pytest.mark.parametrize(
    "environment",
    [{}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}],
    ids=["without a token", "with another token"],
)
def test_another_user_cannot_connect(cluster: PrivateCluster, environment: dict[str, str]) -> None:
    done = _as_nobody(CONNECT.format(address=cluster.address), **environment | LOOPBACK)
    assert done.returncode != 0
    assert "inside" not in done.stdout
    assert "InvalidAuthToken" in done.stderr


@only_root
def test_another_user_cannot_enter_the_clusters_folder(cluster: PrivateCluster) -> None:
    command = [*BECOME_NOBODY, "ls", str(cluster.session)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert "Permission denied" in done.stderr


def test_each_cluster_has_a_token_of_its_own_that_is_in_no_file_and_no_command(
    cluster: PrivateCluster,
) -> None:
    assert all(re.fullmatch("[0-9a-f]{64}", token) for token in cluster.tokens)
    assert len(set(cluster.tokens)) == 2
    for path in cluster.session.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(token.encode() in content for token in cluster.tokens), path
    for process in psutil.process_iter(["cmdline"]):
        assert not any(token in " ".join(process.info["cmdline"] or ()) for token in cluster.tokens)


def test_the_driver_ends_with_the_environment_that_it_began_with(cluster: PrivateCluster) -> None:
    assert cluster.driver.stdin is not None
    assert cluster.driver.stdout is not None
    cluster.driver.stdin.write("\n")
    cluster.driver.stdin.flush()
    before, after = json.loads(cluster.driver.stdout.readline())
    assert before == after == {"RAY_AUTH_TOKEN_PATH": "/of/the/user"}
    assert cluster.driver.wait(timeout=60) == 0


LATE_START = """
import subprocess, sys
import psutil
import ray
from tests.helpers.recipe import tiny_config
from vader_ray.errors import RunFailed
from vader_ray.orchestration.clusters import connection

start, late = ray.init, []
wait = [sys.executable, "-c", "import time; time.sleep(1000)"]
silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
other = subprocess.Popen(wait, **silent)

def start_late(**settings):
    if len(late) < int(sys.argv[1]):
        late.append(subprocess.Popen([*wait, settings["_temp_dir"]], **silent).pid)
        raise Exception("The current node timed out during startup. This could happen because ...")
    return start(**settings)

ray.init = start_late
try:
    with connection.connected(tiny_config("/tmp")):
        assert ray.get(ray.remote(lambda: 1).remote()) == 1
except RunFailed as error:
    print(error)
print(len(late), [pid for pid in late if psutil.pid_exists(pid)], other.poll())
other.kill()
"""


@pytest.mark.parametrize(
    ("num_late", "printed"),
    [
        (1, "1 [] None\n"),
        (
            9,
            "Ray's processes did not start within 30 seconds, 4 times: this machine is too busy; start the "
            "command again when it has less to do\n4 [] None\n",
        ),
    ],
)
def test_ray_is_started_again_where_its_processes_are_late(num_late: int, printed: str) -> None:
    """The first starts fail as on a busy machine, and leave a process behind."""
    done = subprocess.run(
        [sys.executable, "-c", LATE_START, str(num_late)], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.stdout == printed, done.stderr


def test_files_of_ended_clusters_are_swept_and_those_of_running_ones_stay(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    ended = [tmp_path / f"session_2026-01-0{day}_10-00-00_000000_{process.pid}" for day in range(1, 6)]
    running = tmp_path / f"session_2026-01-01_09-00-00_000000_{os.getpid()}"
    for session in (*ended, running):
        (session / "logs").mkdir(parents=True)
        (session / "logs" / "raylet.out").touch()
        os.utime(session / "logs" / "raylet.out", (0, 0))
    os.utime(ended[0] / "logs" / "raylet.out")
    private_cluster._sweep_sessions(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([running, ended[0], *ended[2:]])
