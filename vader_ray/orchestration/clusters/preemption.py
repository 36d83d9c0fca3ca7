"""The notice that a cloud gives before it takes a machine back: heard on the machine itself, handed to Ray as a drained node.

Runs keep every step on a node that is being drained. Ray hears of it from its launcher on Kubernetes alone, not from the clouds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import ray

from vader_ray.errors import UserError

GOOGLE_SECONDS = 30
"""What Google gives between notice and end."""


def aws_notice() -> float | None:
    """Seconds until Amazon takes this spot machine back, None while it does not want it.

    Source: "Spot Instance interruption notices" of the EC2 user guide; metadata service, version 2.
    """
    endpoint = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254").rstrip("/")
    token = _ask(f"{endpoint}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, method="PUT")
    try:
        action = _ask(
            f"{endpoint}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token}
        )
    except HTTPError as error:
        if error.code == 404:
            return None
        raise
    until = datetime.fromisoformat(json.loads(action)["time"])
    return max(0.0, (until - datetime.now(UTC)).total_seconds())


def gcp_notice() -> float | None:
    """The same of Google, for spot and preemptible machines. Source: "Preemptible VM instances" of Compute Engine's manual."""
    host = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
    preempted = _ask(f"http://{host}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
    return float(GOOGLE_SECONDS) if preempted.strip() == "TRUE" else None


NOTICES: dict[str, Callable[[], float | None]] = {"aws": aws_notice, "gcp": gcp_notice}


def watch(cloud: str, every: float) -> None:
    """Ask the cloud every so many seconds; on its notice drain this machine's Ray node and return.

    Raises:
        UserError: this machine has no such metadata service, or no Ray.
    """
    notice, asked = NOTICES[cloud], False
    while True:
        try:
            seconds = notice()
        except OSError as error:
            if not asked:
                raise UserError(
                    f"no metadata service of {cloud} answers here ({error}); run this on a machine of {cloud}"
                ) from None
            print(f"the metadata service does not answer: {error}", file=sys.stderr, flush=True)
            seconds = None
        asked = True
        if seconds is not None:
            return _drain(seconds)
        time.sleep(every)


def _drain(seconds: float) -> None:
    try:
        ray.init(address="auto", log_to_driver=False, logging_level="warning")
    except ConnectionError:
        raise UserError(
            f"this machine is taken back in {seconds:.0f} seconds, and no Ray runs on it"
        ) from None
    context = ray.get_runtime_context()
    node, address = context.get_node_id(), context.gcs_address
    reason = [
        "--reason",
        "DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message",
        "the cloud takes this machine back",
    ]
    where = ["--address", address, "--node-id", node, "--deadline-remaining-seconds", str(int(seconds))]
    subprocess.run([sys.executable, "-m", "ray.scripts.scripts", "drain-node", *where, *reason], check=True)
    print(f"this machine is taken back in {seconds:.0f} seconds; Ray drains node {node}", flush=True)


def _ask(url: str, headers: dict[str, str], method: str = "GET") -> str:
    with urlopen(Request(url, headers=headers, method=method), timeout=5) as answer:
        return str(answer.read().decode())
