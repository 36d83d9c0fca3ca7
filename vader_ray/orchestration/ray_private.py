"""Uses of Ray's private functions, because of which `ray` is pinned to one minor version."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._common.utils import get_default_system_temp_dir
from ray._private import ray_constants
from ray.autoscaler._private.util import prepare_config as prepare_config
from ray.autoscaler._private.util import validate_config as validate_config
from ray.exceptions import ActorDiedError
from ray.experimental.internal_kv import _internal_kv_exists, _internal_kv_put
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError

from vader_ray.errors import describe, last_line
from vader_ray.running import read_running

LOOPBACK_ENVIRONMENT = {ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}
"""Environment variables by which child processes do what `loopback_node_address` does in this process."""

NO_METRICS_ENVIRONMENT = {
    "RAY_enable_metrics_collection": "0",
    "AUTOSCALER_METRIC_PORT": "-1",
    "DASHBOARD_METRIC_PORT": "-1",
}
"""Environment variables by which no process of Ray opens a port for metrics, which needs no token. The last
two are not valid ports: the processes log that, and continue without metrics."""

_LOST = {"raylet": "raylet", "gcs_server": "gcs_server (the cluster's control service)"}
"""Processes without which a cluster cannot go on."""

_LOSSES = ("Raylet is terminated", "A worker died or was killed")
"""Beginnings of Ray's messages on the loss of a process."""

_NAMESPACE = "vader_ray"
"""Namespace of this package's entries in the cluster's key-value store."""

START_TIMED_OUT = ("timed out during startup", "Timed out waiting for file")
"""Parts of the messages of `ray.init`'s plain errors when a process of a node takes more than 30 seconds, or
ends before it has started."""


def is_node_draining() -> bool:
    """Return whether the node of this process is being drained, since it will be taken away."""
    node_id: str = ray.get_runtime_context().get_node_id()
    return node_id in ray._private.state.state.get_draining_nodes()


def logs_folder() -> Path:
    """Return the folder of Ray's logs on this machine."""
    return Path(ray._private.worker._global_node.get_logs_dir_path())


@contextmanager
def quiet_loss() -> Iterator[None]:
    """Keep Ray from printing paragraphs when one of its processes is lost; its logs have them."""
    before = ray._private.worker.print_to_stdstream

    def print_other(data: dict[str, Any], *arguments: Any, **options: Any) -> None:
        if not any(line.startswith(_LOSSES) for line in data["lines"]):
            before(data, *arguments, **options)

    ray._private.worker.print_to_stdstream = print_other
    try:
        yield
    finally:
        ray._private.worker.print_to_stdstream = before


def lost_process() -> str | None:
    """Return the name of a process of this driver's private cluster that has ended by itself, or None."""
    node = ray._private.worker._global_node
    ended = [name for name, _ in node.dead_processes()] if node is not None else []
    return next((_LOST[name] for name in ended if name in _LOST), None)


def describe_loss(lost: str) -> str:
    """Return the message on the loss of a process that `lost_process` has named."""
    return f"Ray's process {lost} was killed or has crashed"


def request_end(key: str) -> None:
    """Leave a request for the workers of a run in the cluster."""
    _internal_kv_put(key, b"1", namespace=_NAMESPACE)


def is_end_requested(key: str) -> bool:
    """Return whether `request_end` was called, by any process of the cluster."""
    return bool(_internal_kv_exists(key, namespace=_NAMESPACE))


def running_file(folder: str, rank: int = 0) -> Path:
    """Return the file in which a worker of a run records which reward runs, on the worker's machine.

    Args:
        folder: the run's folder on the driver's machine.
    """
    return session_folder() / f"running-{hashlib.sha256(folder.encode()).hexdigest()[:16]}-{rank}"


def describe_failure(error: BaseException, folder: str) -> tuple[str, str]:
    """Return a message and the traceback of the error with which Ray Train has ended the run of a folder."""
    cause, rank = error, 0
    if isinstance(error, ActorDiedError):
        return "Ray Train's controller process was killed or has crashed", f"{error}\n"
    if isinstance(error, WorkerGroupError):
        rank, cause = min(error.worker_failures.items())
        message = f"worker {rank} failed: "
    else:
        message = "Ray Train gave up: "
    base = cause._base_exc if isinstance(cause, UserExceptionWithTraceback) else cause
    what = _describe_death(folder, rank) if _is_death(base) else describe(base)
    return message + what, f"{error}\n\nRay's logs are in {logs_folder()}\n"


def describe_trial_failure(error: BaseException, folder: str) -> tuple[str, str]:
    """Return a message and the traceback of the error with which Ray Tune has ended the trial of a folder."""
    what = _describe_death(folder, 0) if isinstance(error, ActorDiedError) else last_line(error)
    return what, f"{error}\n\nRay's logs are in {logs_folder()}\n"


def _describe_death(folder: str, rank: int) -> str:
    subject = read_running(running_file(folder, rank))
    when = f" while {subject} was running" if subject else ""
    return (
        f"its process was killed or has ended by itself{when} (a reward or a library may have ended it, or "
        "the system for lack of memory)"
    )


def _is_death(error: BaseException) -> bool:
    """Return whether an error of a worker is the end of its process."""
    if isinstance(error, WorkerHealthCheckFailedError):
        error = error.health_check_failure
    return isinstance(error, ActorDiedError)


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
