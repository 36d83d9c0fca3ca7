"""Notices that a cloud takes a machine back: read from servers that speak the clouds' protocols, handed to a
real Ray node."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import ray
from ray.cluster_utils import Cluster

from tests.helpers.network import free_port
from tests.helpers.paths import REPOSITORY
from tests.helpers.runs import CLI
from tests.helpers.waiting import wait_until
from vader_ray.errors import UserError
from vader_ray.orchestration.clusters.preemption import aws_notice, gcp_notice, watch_preemption
from vader_ray.orchestration.ray_private import is_node_draining

TOKEN = "a token"


@dataclass
class Service:
    """A machine's metadata service; both clouds' at once."""

    address: str
    leaves_at: datetime | None = None
    num_polls: int = 0
    """Requests for AWS's notice."""


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            asked = (
                self.path == "/latest/api/token"
                and int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"]) > 0
            )
            self.tell(200 if asked else 400, TOKEN)

        def do_GET(self) -> None:
            leaves_at = known.leaves_at
            if self.path == "/latest/meta-data/spot/instance-action":
                if self.headers["X-aws-ec2-metadata-token"] != TOKEN:
                    return self.tell(401)
                known.num_polls += 1
                if leaves_at is None:
                    return self.tell(404)
                return self.tell(
                    200, json.dumps({"action": "terminate", "time": leaves_at.strftime("%Y-%m-%dT%H:%M:%SZ")})
                )
            if self.path == "/computeMetadata/v1/instance/preempted":
                allowed = self.headers["Metadata-Flavor"] == "Google"
                return self.tell(200 if allowed else 403, "TRUE\n" if leaves_at else "FALSE\n")
            return self.tell(404)

        def tell(self, status: int, text: str = "") -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    known = Service(f"127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://{known.address}/")
    monkeypatch.setenv("GCE_METADATA_HOST", known.address)
    yield known
    server.shutdown()
    server.server_close()


def test_notices_are_read_as_the_clouds_give_them(service: Service) -> None:
    with pytest.raises(HTTPError, match="401"):  # the server does ask for the token
        urlopen(f"http://{service.address}/latest/meta-data/spot/instance-action")
    assert aws_notice() is gcp_notice() is None
    service.leaves_at = datetime.now(UTC) + timedelta(seconds=100)
    left = aws_notice()
    assert left is not None
    assert 95 < left <= 100
    assert gcp_notice() == 30
    service.leaves_at = datetime.now(UTC) - timedelta(seconds=100)
    assert aws_notice() == 0


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_a_machine_of_another_kind_is_told_so(cloud: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:9")
    with pytest.raises(UserError, match=f"no metadata service of {cloud} can be reached"):
        watch_preemption(cloud, every=1)


@ray.remote(num_cpus=1)
class Trial:
    """Keeps its node from being idle."""

    def leaves(self) -> bool:
        return is_node_draining()

    def node(self) -> str:
        return str(ray.get_runtime_context().get_node_id())


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """On a Ray node that `vader-ray watch-notices` will find."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "dashboard_port": free_port()})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    ray.init(address=cluster.address, log_to_driver=False)
    yield Trial.remote()  # type: ignore[attr-defined]
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.ray
@pytest.mark.chaos
def test_the_node_of_a_machine_that_is_taken_back_is_drained(service: Service, trial: Any) -> None:
    assert not ray.get(trial.leaves.remote())
    watcher = subprocess.Popen(
        [CLI, "watch-notices", "aws", "--every", "0.2"], stdout=subprocess.PIPE, text=True
    )
    wait_until(lambda: service.num_polls >= 5, process=watcher)
    assert not ray.get(trial.leaves.remote())
    service.leaves_at = datetime.now(UTC) + timedelta(seconds=100)
    said, _ = watcher.communicate(timeout=60)
    assert watcher.returncode == 0
    assert f"Ray drains node {ray.get(trial.node.remote())}" in said
    wait_until(lambda: ray.get(trial.leaves.remote()))
