"""The one place where Ray is started, quietly, and asked what it has."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from vader_ray.config import ConfigError, MachineConfig
from vader_ray.orchestration.tracking import quiet_environment

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # otherwise a worker's print comes out twice
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # report() blocks for up to this long
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "1800",  # workers that disagree fail instead of waiting for ever
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",
}


@contextmanager
def connected(machine: MachineConfig) -> Iterator[None]:
    """A cluster: the one of ``RAY_ADDRESS`` or of the surrounding job, else one of this machine for this run.

    Raises:
        ConfigError: the cluster has not what the workers need, so that Ray would wait for ever.
    """
    environment = _ENVIRONMENT | quiet_environment()
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    if "RAY_ADDRESS" in os.environ:
        ray.init(runtime_env={"env_vars": environment}, **quiet)
    else:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a private cluster on loopback: no token file is left behind
        ray.init(address="local", num_cpus=max(os.cpu_count() or 1, machine.num_workers), **quiet)
    try:
        _check_resources(machine)
        yield
    finally:
        ray.shutdown()


def uses_gpu(machine: MachineConfig) -> bool:
    """One GPU per worker when the recipe says so, or when it says nothing and the cluster has any."""
    return bool(ray.cluster_resources().get("GPU")) if machine.use_gpu is None else machine.use_gpu


def _check_resources(machine: MachineConfig) -> None:
    kind = "GPU" if uses_gpu(machine) else "CPU"
    available = int(ray.cluster_resources().get(kind, 0))
    if available < machine.num_workers:
        raise ConfigError(
            f"machine.num_workers={machine.num_workers} need a {kind} each, the Ray cluster has {available}; "
            "lower --workers or add nodes"
        )
