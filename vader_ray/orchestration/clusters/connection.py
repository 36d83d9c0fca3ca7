"""Connections to Ray: join a cluster or start a private one, wait for nodes, query resources."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from math import ceil
from typing import Any

import psutil
import ray
import torch
from ray.autoscaler.sdk import request_resources

from vader_ray.config import ExperimentConfig, RuntimeConfig
from vader_ray.config.auto import with_placements
from vader_ray.errors import UserError, first_line
from vader_ray.orchestration.clusters import private_cluster
from vader_ray.orchestration.clusters.worker_setup import HOOK
from vader_ray.orchestration.signals import restore_sigterm_handler
from vader_ray.orchestration.tracking.mlflow_client import quiet_environment
from vader_ray.stages import announce

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else a worker's print appears twice
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # report() blocks for up to this long
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "1800",  # workers that diverge fail instead of waiting for each other
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",
}

_FORWARDED = ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "HF_HUB_OFFLINE")
"""Variables on storage and weights that processes on other machines get from the driver. No secrets, because
Ray's dashboard shows them."""
_POLL_SECONDS = 2.0


@contextmanager
def connected(
    config: ExperimentConfig,
    *,
    num_runs: int = 1,
    needs_state_api: bool = False,
    on_lost: Callable[[str], str] = lambda loss: loss,
) -> Iterator[None]:
    """Connect to the cluster of ``RAY_ADDRESS`` or of the surrounding Ray job, else start a private one.

    Args:
        config: recipe whose workers need the resources.
        num_runs: runs at the same time, for which a private cluster has enough CPU slots.
        needs_state_api: start a private cluster with Ray's dashboard, which has the State API.
        on_lost: records that a private cluster has lost a process, before this process is ended for it;
            receives the description of the loss, and returns the message to print.

    Raises:
        UserError: the cluster cannot be reached, or lacks resources, so that Ray would wait for ever.
    """
    environment = _ENVIRONMENT | quiet_environment()
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    with ExitStack() as stack:
        if "RAY_ADDRESS" in os.environ:
            announce(f"joining the Ray cluster {os.environ['RAY_ADDRESS']}")
            stack.callback(ray.shutdown)
            try:
                ray.init(runtime_env=runtime_env(environment | _forwarded()), **quiet)
            except ConnectionError as error:
                raise UserError(
                    f"RAY_ADDRESS={os.environ['RAY_ADDRESS']}: no Ray cluster can be reached there "
                    f"({first_line(error)}); correct it, or unset it to use this machine"
                ) from None
        else:
            announce("starting Ray")
            num_cpus = max(os.cpu_count() or 1, _needed(config, num_runs=num_runs)["CPU"])
            more = {"num_cpus": num_cpus, "runtime_env": runtime_env({}), "on_lost": on_lost, **quiet}
            stack.enter_context(private_cluster.start(include_dashboard=needs_state_api, **more))
        restore_sigterm_handler()
        if config.runtime.wait_minutes:
            _wait_for_nodes(config, num_runs)
        _check_resources(config)
        yield


def _forwarded() -> dict[str, str]:
    return {name: os.environ[name] for name in _FORWARDED if name in os.environ}


def runtime_env(environment: dict[str, str]) -> dict[str, Any]:
    """Return the runtime environment, without settings that the surrounding Ray job has made.

    Ray refuses a setting that is given twice.
    """
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env", {})
    already = job.get("env_vars", {})
    settings: dict[str, Any] = {
        "env_vars": {name: value for name, value in environment.items() if name not in already}
    }
    if "worker_process_setup_hook" not in job:
        settings["worker_process_setup_hook"] = HOOK
    return settings


def _wait_for_nodes(config: ExperimentConfig, num_runs: int) -> None:
    """Request the runs' resources from the autoscaler; wait at most ``runtime.wait_minutes`` for them."""
    kind = "GPU" if uses_gpu(config.runtime) else "CPU"
    needed = _needed(config, kind, num_runs=num_runs)
    until = time.monotonic() + 60 * config.runtime.wait_minutes
    announce(f"waiting for nodes with {needed[kind]} {kind}s, at most {config.runtime.wait_minutes:g} min")
    request_resources(bundles=[{kind: 1} for _ in range(needed[kind])])
    try:
        while ray.cluster_resources().get(kind, 0) < needed[kind] and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)
    finally:
        request_resources(bundles=[])  # idle nodes may be removed again


@contextmanager
def existing() -> Iterator[None]:
    """Connect to the cluster of ``RAY_ADDRESS``, or to the one that runs on this machine.

    Raises:
        UserError: no cluster can be reached.
    """
    try:
        ray.init(address="auto", logging_level=logging.ERROR, log_to_driver=False)
    except ConnectionError as error:
        raise UserError(f"no Ray cluster can be reached ({error}); set RAY_ADDRESS to its address") from error
    try:
        yield
    finally:
        ray.shutdown()


def uses_gpu(runtime: RuntimeConfig) -> bool:
    """Return ``runtime.use_gpu``, or if it is not set, whether the cluster has a GPU."""
    return bool(ray.cluster_resources().get("GPU")) if runtime.use_gpu is None else runtime.use_gpu


def free_bytes(runtime: RuntimeConfig) -> int:
    """Return the free memory of a worker's device: of a GPU, or the worker's share of this node."""
    if not uses_gpu(runtime):
        return int(psutil.virtual_memory().available // runtime.num_workers)
    free: int = ray.get(ray.remote(num_gpus=1, num_cpus=0)(_free_gpu_bytes).remote())
    return free


def _free_gpu_bytes() -> int:
    return int(torch.cuda.mem_get_info()[0])


def num_free_gpus(config: ExperimentConfig) -> float:
    """Return the GPUs of the cluster that neither workers nor rewards with a certain placement need."""
    certain = with_placements(config, ())
    needed = _needed(certain, "GPU" if uses_gpu(config.runtime) else "CPU")
    return float(ray.cluster_resources().get("GPU", 0) - needed["GPU"])


def max_concurrent_runs(config: ExperimentConfig) -> int:
    """Return the number of runs that fit on the cluster together, if they share the rewards' actors."""
    kind = "GPU" if uses_gpu(config.runtime) else "CPU"
    free = ray.cluster_resources().get(kind, 0) - _needed(config, kind, num_runs=0)[kind]
    return int(free // config.runtime.num_workers)


def _needed(config: ExperimentConfig, kind: str | None = None, *, num_runs: int = 1) -> dict[str, int]:
    """Return the CPUs and GPUs of the runs' workers (one ``kind`` each) and of the rewards' actors."""
    needed = {"CPU": 0.0, "GPU": 0.0}
    needed[kind or "CPU"] += num_runs * config.runtime.num_workers
    for spec in (*config.rewards, *config.eval_rewards):
        if spec.placement is not None:
            needed["CPU"] += spec.placement.num_replicas * spec.placement.num_cpus
            needed["GPU"] += spec.placement.num_replicas * spec.placement.num_gpus
    return {name: ceil(amount) for name, amount in needed.items()}


def _check_resources(config: ExperimentConfig) -> None:
    available, least = ray.cluster_resources(), config.runtime.min_workers or config.runtime.num_workers
    smallest = config.model_copy(update={"runtime": config.runtime.model_copy(update={"num_workers": least})})
    for name, amount in _needed(smallest, "GPU" if uses_gpu(config.runtime) else "CPU").items():
        if available.get(name, 0) < amount:
            raise UserError(
                f"runtime.num_workers={least} and the rewards with a placement need {amount} {name}s, the "
                f"Ray cluster has {available.get(name, 0):g}; lower --workers or "
                f"placement.num_{name.lower()}s, or add nodes"
            )
