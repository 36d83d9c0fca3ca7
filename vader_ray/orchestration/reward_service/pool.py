"""Pools of remote rewards: start the replicas of a recipe, share them between runs, list and stop them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    RayTaskError,
    RuntimeEnvSetupError,
)
from ray.runtime_env import RuntimeEnv
from ray.util import list_named_actors

from vader_ray.alignment.frames import choose_frames
from vader_ray.config import ExperimentConfig, PlacementConfig, RewardConfig, SamplingConfig
from vader_ray.errors import UserError, first_line
from vader_ray.orchestration.reward_service.actor import STATUS_GROUP, RewardActor, reward_settings
from vader_ray.orchestration.reward_service.remote_reward import PooledReward
from vader_ray.stages import announce
from vader_ray.uris import HIDDEN

NAMESPACE = "vader_ray"
"""Ray namespace of the shared pools."""
_PREFIX = "reward:"
_ACTOR: Any = ray.remote(concurrency_groups={STATUS_GROUP: 2})(RewardActor)


@contextmanager
def start_pools(config: ExperimentConfig) -> Iterator[dict[str, PooledReward]]:
    """Start the pools of the recipe's remote rewards; yield the rewards by name, loaded and checked.

    The pools end with the context, except for shared ones.

    Raises:
        UserError: a reward cannot be loaded or breaks its contract, or a shared pool contains another
            reward.
    """
    pools: dict[str, PooledReward] = {}
    own: list[ActorHandle] = []
    started = []
    try:
        for spec, placement in _remote(config):
            announce(f"starting {placement.num_replicas} actors of the reward {spec.name}")
            replicas = _start_replicas(spec, placement, config.runtime.num_threads)
            own += [] if placement.shared else replicas
            size = _video_size(spec, config.sampling)
            started.append((spec, placement, replicas, [each.prepare.remote(*size) for each in replicas]))
        for spec, placement, replicas, prepared in started:
            known = placement.model_copy(update={"runtime_env": {}})  # its secrets end here
            pools[spec.name] = PooledReward(spec.name, known, replicas, _get(spec, prepared)[0])
        yield pools
    finally:
        for replica in own:
            ray.kill(replica)


def pool_settings(config: ExperimentConfig) -> dict[str, object]:
    """Return the settings of the recipe's pools by reward; recipes with equal ones can share pools."""
    return {
        spec.name: (reward_settings(spec), placement, _video_size(spec, config.sampling))
        for spec, placement in _remote(config)
    }


def describe_pools() -> dict[str, dict[str, Any]]:
    """Return the reward settings of each shared pool of the connected cluster, by the pool's name."""
    return {
        name: ray.get(_named(replicas[0]).settings.remote()) for name, replicas in _shared_pools().items()
    }


def stop_pool(name: str) -> int:
    """End a shared pool and return the number of its replicas.

    Raises:
        UserError: there is no shared pool of this name.
    """
    pools = _shared_pools()
    if name not in pools:
        raise UserError(
            f"there is no shared pool {name!r} on this cluster; there are: {', '.join(pools) or 'none'}"
        )
    for replica in pools[name]:
        ray.kill(_named(replica))
    return len(pools[name])


def _remote(config: ExperimentConfig) -> list[tuple[RewardConfig, PlacementConfig]]:
    return [
        (spec, spec.placement)
        for spec in (*config.rewards, *config.eval_rewards)
        if spec.placement is not None
    ]


def _video_size(spec: RewardConfig, sampling: SamplingConfig) -> tuple[int, int, int]:
    """Number of frames, height and width of the videos that the reward scores."""
    indices = choose_frames(spec.frames, sampling.total_frames(), torch.Generator())
    return len(indices), sampling.height, sampling.width


def _start_replicas(spec: RewardConfig, placement: PlacementConfig, num_threads: int) -> list[ActorHandle]:
    """Start the replicas of a pool, or get the existing ones if the pool is shared."""
    settings = reward_settings(spec)
    options = {
        "num_cpus": placement.num_cpus,
        "num_gpus": placement.num_gpus,
        "resources": placement.resources,
        "runtime_env": _runtime_env(spec, placement),
        "max_restarts": -1,
        "max_task_retries": placement.max_retries,
    }
    replicas = []
    for index in range(placement.num_replicas):
        shared = {
            "name": f"{_PREFIX}{placement.actor}:{index}",
            "namespace": NAMESPACE,
            "lifetime": "detached",
            "get_if_exists": True,
        }
        actor_class = _ACTOR.options(**options, **(shared if placement.shared else {}))
        replicas.append(actor_class.remote(settings, placement.num_gpus, num_threads))
    if placement.shared and (existing := _get(spec, [replicas[0].settings.remote()])[0]) != settings:
        raise UserError(
            f"{spec.name}.placement: the shared pool {placement.actor!r} contains {existing}, and this "
            f"recipe needs {settings}; give it another name or stop it with `vader-ray pools --stop NAME`"
        )
    return replicas


def _runtime_env(spec: RewardConfig, placement: PlacementConfig) -> RuntimeEnv:
    given = dict(placement.runtime_env)
    if "env_vars" in given:
        given["env_vars"] = {name: _value(spec, name, value) for name, value in given["env_vars"].items()}
    try:
        return RuntimeEnv(**given)
    except (TypeError, ValueError) as error:
        raise UserError(f"{spec.name}.placement.runtime_env: {error}") from error


def _value(spec: RewardConfig, name: str, given: str) -> str:
    """Return the value of an environment variable; the recipe of a run's folder has none."""
    value = os.environ.get(name) if given == HIDDEN else given
    if value is None:
        raise UserError(
            f"{spec.name}.placement.runtime_env.env_vars.{name} has no value, since no file of a run "
            f"contains it; set the environment variable {name}, or give a recipe file that has the value"
        )
    return value


def _get(spec: RewardConfig, references: Sequence[ray.ObjectRef[Any]]) -> list[Any]:
    """Wait for results of new replicas; their errors are mistakes in the recipe."""
    try:
        results: list[Any] = ray.get(list(references))
    except RayTaskError as error:
        raise UserError(str(error.cause)) from error
    except RuntimeEnvSetupError as error:
        raise UserError(f"{spec.name}.placement.runtime_env cannot be set up: {first_line(error)}") from error
    except (ActorDiedError, ActorUnavailableError) as error:
        raise UserError(f"{spec.name}.placement: its actor cannot start: {first_line(error)}") from error
    return results


def _shared_pools() -> Mapping[str, list[str]]:
    """Names of the replicas of each shared pool."""
    pools: dict[str, list[str]] = {}
    for actor in list_named_actors(all_namespaces=True):
        if actor["namespace"] == NAMESPACE and actor["name"].startswith(_PREFIX):
            pools.setdefault(actor["name"].removeprefix(_PREFIX).rpartition(":")[0], []).append(actor["name"])
    return dict(sorted(pools.items()))


def _named(actor: str) -> ActorHandle:
    return ray.get_actor(actor, namespace=NAMESPACE)
