"""The one place where Ray is started, quietly, and asked what it has."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil

import ray

from vader_ray.config import ConfigError, ExperimentConfig, MachineConfig
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
def connected(config: ExperimentConfig, *, num_runs: int = 1) -> Iterator[None]:
    """A cluster: the one of ``RAY_ADDRESS`` or of the surrounding job, else one of this machine, made for so many runs at once.

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
        ray.init(address="local", num_cpus=max(os.cpu_count() or 1, _needed(config, num_runs=num_runs)["CPU"]), **quiet)
    try:
        _check_resources(config)
        yield
    finally:
        ray.shutdown()


@contextmanager
def existing() -> Iterator[None]:
    """The cluster of ``RAY_ADDRESS``, or the one that runs on this machine.

    Raises:
        ConfigError: there is none.
    """
    try:
        ray.init(address="auto", logging_level=logging.ERROR, log_to_driver=False)
    except ConnectionError as error:
        raise ConfigError(f"no Ray cluster answers ({error}); set RAY_ADDRESS to the one that is meant") from error
    try:
        yield
    finally:
        ray.shutdown()


def uses_gpu(machine: MachineConfig) -> bool:
    """One GPU per worker when the recipe says so, or when it says nothing and the cluster has any."""
    return bool(ray.cluster_resources().get("GPU")) if machine.use_gpu is None else machine.use_gpu


def room_for(config: ExperimentConfig) -> int:
    """How many runs the cluster can hold at once, when they share the actors of the placed rewards."""
    kind = "GPU" if uses_gpu(config.machine) else "CPU"
    free = ray.cluster_resources().get(kind, 0) - _needed(config, kind, num_runs=0)[kind]
    return int(free // config.machine.num_workers)


def _needed(config: ExperimentConfig, kind: str | None = None, *, num_runs: int = 1) -> dict[str, int]:
    """CPUs and GPUs of the runs' workers (each has one of ``kind``; by default a CPU) and of the rewards' own actors."""
    needed = {"CPU": 0.0, "GPU": 0.0}
    needed[kind or "CPU"] += num_runs * config.machine.num_workers
    for spec in (*config.rewards, *config.eval_rewards):
        if spec.placement is not None:
            needed["CPU"] += spec.placement.num_replicas * spec.placement.num_cpus
            needed["GPU"] += spec.placement.num_replicas * spec.placement.num_gpus
    return {name: ceil(amount) for name, amount in needed.items()}


def _check_resources(config: ExperimentConfig) -> None:
    available = ray.cluster_resources()
    for name, amount in _needed(config, "GPU" if uses_gpu(config.machine) else "CPU").items():
        if available.get(name, 0) < amount:
            raise ConfigError(
                f"machine.num_workers={config.machine.num_workers} and the placed rewards need {amount} {name}s, the Ray "
                f"cluster has {available.get(name, 0):g}; lower --workers or placement.num_{name.lower()}s, or add nodes"
            )
