"""Uses of Ray's private functions, because of which `ray` is pinned to one minor version."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray._common.utils import get_default_system_temp_dir
from ray._private import ray_constants
from ray.autoscaler._private.util import prepare_config as prepare_config
from ray.autoscaler._private.util import validate_config as validate_config

LOOPBACK_ENVIRONMENT = {ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}
"""Environment variables by which child processes do what `loopback_node_address` does in this process."""

NO_METRICS_ENVIRONMENT = {
    "RAY_enable_metrics_collection": "0",
    "AUTOSCALER_METRIC_PORT": "-1",
    "DASHBOARD_METRIC_PORT": "-1",
}
"""Environment variables by which no process of Ray opens a port for metrics, which needs no token. The last
two are not valid ports: the processes log that, and continue without metrics."""

START_TIMED_OUT = "timed out during startup"
"""Part of the message of `ray.init`'s plain ``Exception`` when a node takes more than 30 seconds."""


def is_node_draining() -> bool:
    """Return whether the node of this process is being drained, since it will be taken away."""
    node_id: str = ray.get_runtime_context().get_node_id()
    return node_id in ray._private.state.state.get_draining_nodes()


def logs_folder() -> Path:
    """Return the folder of Ray's logs on this machine."""
    return Path(ray._private.worker._global_node.get_logs_dir_path())


def session_folder() -> Path:
    """Return the folder of the files of this process's cluster on this machine."""
    return Path(ray._private.worker._global_node.get_session_dir_path())


def temporary_folder() -> Path:
    """Return the folder in which Ray makes the folder of its clusters' files."""
    return Path(get_default_system_temp_dir())


def reload_authentication() -> None:
    """Make Ray's core read authentication mode and token again, which it otherwise reads once per process."""
    ray._raylet.Config.initialize("")
    ray._raylet.AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def loopback_node_address() -> Iterator[None]:
    """Let `ray.init` start its node on the loopback address, as by default on macOS and Windows only.

    Its argument ``_node_ip_address`` has no such effect: Ray replaces a loopback address by a network's.
    Child processes need `LOOPBACK_ENVIRONMENT`, which Ray reads at its import.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
