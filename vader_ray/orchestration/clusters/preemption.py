"""Poll a cloud's metadata service for preemption of this machine, and drain its Ray node.

On a node that is being drained, runs checkpoint every step. Ray itself detects preemption on Kubernetes only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from math import isfinite
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import ray

from vader_ray.errors import UserError

GOOGLE_SECONDS = 30
"""Time between Google's notice and the end of the machine."""


def aws_notice() -> float | None:
    """Return the seconds until Amazon takes this spot machine back, or None without a notice.

    Source: "Spot Instance interruption notices" of the EC2 user guide; metadata service, version 2.
    """
    endpoint = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254").rstrip("/")
    token = _request(
        f"{endpoint}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, method="PUT"
    )
    try:
        action = _request(
            f"{endpoint}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token}
        )
    except HTTPError as error:
        if error.code == 404:
            return None
        raise
    until = datetime.fromisoformat(json.loads(action)["time"])
    return max(0.0, (until - datetime.now(UTC)).total_seconds())


def gcp_notice() -> float | None:
    """Return the seconds until Google takes this spot or preemptible machine back, or None without a notice.

    Source: "Preemptible VM instances" of Compute Engine's manual.
    """
    host = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
    preempted = _request(
        f"http://{host}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"}
    )
    return float(GOOGLE_SECONDS) if preempted.strip() == "TRUE" else None


NOTICES: dict[str, Callable[[], float | None]] = {"aws": aws_notice, "gcp": gcp_notice}
"""Function that polls each cloud."""


def watch_preemption(cloud: str, every: float) -> None:
    """Poll the cloud every `every` seconds; on a notice drain this machine's Ray node and return.

    Raises:
        UserError: this machine has no such metadata service, or Ray does not run on it.
    """
    if not (every > 0 and isfinite(every)):
        raise UserError(f"--every {every}: give the seconds between requests, a finite number above 0")
    notice, has_responded = NOTICES[cloud], False
    while True:
        try:
            seconds = notice()
        except OSError as error:
            if not has_responded:
                raise UserError(
                    f"no metadata service of {cloud} can be reached ({error}); "
                    f"run this on a machine of {cloud}"
                ) from None
            print(f"the metadata service does not respond: {error}", file=sys.stderr, flush=True)
            seconds = None
        has_responded = True
        if seconds is not None:
            return _drain(seconds)
        time.sleep(every)


def _drain(seconds: float) -> None:
    try:
        ray.init(address="auto", log_to_driver=False, logging_level="warning")
    except ConnectionError:
        raise UserError(
            f"the cloud takes this machine back in {seconds:.0f} seconds, and Ray does not run on it"
        ) from None
    context = ray.get_runtime_context()
    node, address = context.get_node_id(), context.gcs_address
    reason = [
        "--reason",
        "DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message",
        "the cloud takes this machine back",
    ]
    address_and_node = [
        "--address",
        address,
        "--node-id",
        node,
        "--deadline-remaining-seconds",
        str(int(seconds)),
    ]
    subprocess.run(  # noqa: S603 (a list, no shell)
        [sys.executable, "-m", "ray.scripts.scripts", "drain-node", *address_and_node, *reason], check=True
    )
    print(f"the cloud takes this machine back in {seconds:.0f} seconds; Ray drains node {node}", flush=True)


def _request(url: str, headers: dict[str, str], method: str = "GET") -> str:
    request = Request(url, headers=headers, method=method)  # noqa: S310 (addresses of this file, by HTTP)
    with urlopen(request, timeout=5) as response:  # noqa: S310
        return str(response.read().decode())
