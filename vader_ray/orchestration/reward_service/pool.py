"""Rewards in Ray actors: on another GPU, on another node, or once for all trials of a sweep.

The engine needs of a reward only its scores and ∂R/∂frames, so a pool of actors can give both. In float32 the answer is
bit for bit that of the same reward in the worker. A request that a dead actor leaves unanswered is repeated by Ray.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from math import isfinite
from typing import Any, cast

import ray
import torch
from numpy.typing import NDArray
from ray.actor import ActorHandle
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    RayTaskError,
    RuntimeEnvSetupError,
)
from ray.runtime_env import RuntimeEnv
from ray.util import list_named_actors

from vader_ray.alignment.frames import choose_frames
from vader_ray.alignment.reward_gradient import score_and_gradient, score_only
from vader_ray.config import ConfigError, ExperimentConfig, PlacementConfig, RewardConfig, SamplingConfig
from vader_ray.errors import first_line
from vader_ray.orchestration.reward_service.transport import EncodedFrames, Region, pack, unpack
from vader_ray.training.experiment import load_reward
from vader_ray.training.step import TrainingError
from vader_ray.types import Frames, Granularity, Reward, Scores

NAMESPACE = "vader_ray"
START_SECONDS = 600
"""Longest time that a new actor may take to start."""
_PREFIX = "reward:"


@dataclass(frozen=True, slots=True)
class RewardSpec:
    """What a worker must know of a reward that it does not hold."""

    granularity: Granularity
    unit: str
    region: Region


class RewardActor:
    """Holds one reward. It is loaded when first needed, also after a restart."""

    def __init__(self, spec: dict[str, Any], num_gpus: float, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self._spec = RewardConfig.model_validate(spec)
        self._device = torch.device("cuda" if num_gpus else "cpu")
        self._reward: Reward | None = None

    def setting(self) -> dict[str, Any]:
        """What it was made of."""
        return _setting(self._spec)

    def prepare(self, num_frames: int, height: int, width: int) -> RewardSpec:
        """Load the reward and check its contract on videos of this size."""
        self._reward = load_reward(self._spec, num_frames, height, width, self._device)
        region = getattr(self._reward, "region", None)
        seen = region(height, width) if region else (slice(0, height), slice(0, width))
        return RewardSpec(self._reward.granularity, self._reward.unit, seen)

    def scores(self, frames: EncodedFrames, prompts: Sequence[str], chunk_size: int) -> NDArray[Any]:
        """One score per video."""
        seen = unpack(frames, self._device)
        return self._finite(score_only(self._loaded(seen), seen, prompts, chunk_size), prompts).cpu().numpy()

    def gradient(
        self, frames: EncodedFrames, prompts: Sequence[str], chunk_size: int
    ) -> tuple[NDArray[Any], EncodedFrames]:
        """One score per video, and ∂(sum of scores)/∂frames."""
        seen = unpack(frames, self._device)
        scores, gradient = score_and_gradient(self._loaded(seen), seen, prompts, chunk_size)
        self._finite(scores, prompts)
        if not gradient.isfinite().all():
            raise ValueError(
                f"its gradient with respect to the frames is not finite; the prompts were {list(prompts)}"
            )
        return scores.cpu().numpy(), pack(gradient, frames.region, frames.dtype, scaled=True)

    def _loaded(self, frames: Frames) -> Reward:
        if self._reward is None:
            self.prepare(frames.shape[1], *frames.shape[-2:])
        return cast(Reward, self._reward)

    @staticmethod
    def _finite(scores: Scores, prompts: Sequence[str]) -> Scores:
        for score, prompt in zip(scores.tolist(), prompts, strict=True):
            if not isfinite(score):
                raise ValueError(f"it answered {score} for a video of {prompt!r}")
        return scores


class PooledReward:
    """A reward of a pool of actors, as the engine sees it."""

    def __init__(
        self, name: str, placement: PlacementConfig, actors: Sequence[ActorHandle], facts: RewardSpec
    ) -> None:
        self.granularity, self.unit = facts.granularity, facts.unit
        self._name, self._placement, self._actors, self._facts = name, placement, list(actors), facts
        self._requests = count()

    def submit_scores(self, frames: Frames, prompts: Sequence[str], chunk_size: int) -> Callable[[], Scores]:
        """Sends the frames; the call that is returned waits for the scores."""
        answer = self._ask("scores", frames, prompts, chunk_size)
        return lambda: torch.from_numpy(answer().copy()).to(frames)

    def submit_gradient(
        self, frames: Frames, prompts: Sequence[str], chunk_size: int
    ) -> Callable[[], tuple[Scores, Frames]]:
        """Sends the frames; the call that is returned waits for the scores and ∂(sum of scores)/∂frames."""
        answer = self._ask("gradient", frames, prompts, chunk_size)

        def wait() -> tuple[Scores, Frames]:
            scores, gradient = answer()
            return torch.from_numpy(scores.copy()).to(frames), unpack(gradient, frames.device).to(
                frames.dtype
            )

        return wait

    def _ask(self, method: str, frames: Frames, prompts: Sequence[str], chunk_size: int) -> Callable[[], Any]:
        packed = ray.put(pack(frames, self._facts.region, self._placement.transport))
        # Workers start at different actors, so that they do not queue at the first one.
        actor = self._actors[(os.getpid() + next(self._requests)) % len(self._actors)]
        reference = getattr(actor, method).remote(packed, list(prompts), chunk_size)
        return lambda: self._wait(actor, reference)

    def _wait(self, actor: ActorHandle, reference: ray.ObjectRef[Any]) -> Any:
        name, placement = self._name, self._placement
        try:
            for attempt in range(placement.max_retries + 1):
                if ray.wait([reference], timeout=placement.timeout_seconds)[0]:
                    return ray.get(reference)
                if attempt < placement.max_retries:
                    _restart(actor)
        except GetTimeoutError as error:
            raise TrainingError(
                f"reward {name!r}: actor {placement.actor!r} was silent, was ended, and did not come back within "
                f"{START_SECONDS} seconds; look at `ray status`: the cluster may lack the resources that its placement asks for"
            ) from error
        except RayTaskError as error:
            raise TrainingError(f"reward {name!r} in actor {placement.actor!r}: {error.cause}") from error
        except (ActorDiedError, ActorUnavailableError) as error:
            raise TrainingError(
                f"reward {name!r}: actor {placement.actor!r} died more than {placement.max_retries} times during one "
                f"request ({first_line(error)}); give it more memory or raise placement.max_retries"
            ) from error
        raise TrainingError(
            f"reward {name!r}: actor {placement.actor!r} gave no answer within placement.timeout_seconds="
            f"{placement.timeout_seconds:g}, {placement.max_retries + 1} times; raise it, or send fewer frames at once "
            "(runtime.micro_batch_size)"
        )


def _restart(actor: ActorHandle) -> None:
    """Kill a silent actor and wait until it is back; Ray sends it the unanswered requests once more."""
    ray.kill(actor, no_restart=False)
    ray.get(actor.setting.remote(), timeout=START_SECONDS)


@contextmanager
def serving(config: ExperimentConfig) -> Iterator[dict[str, PooledReward]]:
    """The placed rewards of a recipe by name, loaded and checked; their own actors end with the context, shared ones stay.

    Raises:
        ConfigError: a reward cannot be loaded or breaks its contract, or a shared pool holds something else.
    """
    pools: dict[str, PooledReward] = {}
    own: list[ActorHandle] = []
    started = []
    try:
        for spec, placement in _placed(config):
            actors = _start(spec, placement, config.runtime.num_threads)
            own += [] if placement.shared else actors
            size = _size(spec, config.sampling)
            started.append((spec, placement, actors, [actor.prepare.remote(*size) for actor in actors]))
        for spec, placement, actors, prepared in started:
            pools[spec.name] = PooledReward(spec.name, placement, actors, _answer(spec, prepared)[0])
        yield pools
    finally:
        for actor in own:
            ray.kill(actor)


def pooled(config: ExperimentConfig) -> dict[str, object]:
    """What a recipe's pools hold and how they are asked; recipes in which this is the same can share them."""
    return {
        spec.name: (_setting(spec), placement, _size(spec, config.sampling))
        for spec, placement in _placed(config)
    }


def describe_pools() -> dict[str, dict[str, Any]]:
    """What each shared pool of the connected cluster holds, by name."""
    return {name: ray.get(_named(actors[0]).setting.remote()) for name, actors in _shared_pools().items()}


def stop_pool(name: str) -> int:
    """End a shared pool; the number of its actors.

    Raises:
        ConfigError: there is none of that name.
    """
    pools = _shared_pools()
    if name not in pools:
        raise ConfigError(
            f"there is no shared pool {name!r} on this cluster; there are: {', '.join(pools) or 'none'}"
        )
    for actor in pools[name]:
        ray.kill(_named(actor))
    return len(pools[name])


def _placed(config: ExperimentConfig) -> list[tuple[RewardConfig, PlacementConfig]]:
    return [
        (spec, spec.placement)
        for spec in (*config.rewards, *config.eval_rewards)
        if spec.placement is not None
    ]


def _size(spec: RewardConfig, sampling: SamplingConfig) -> tuple[int, int, int]:
    """Number of frames, height and width of what the reward will see."""
    seen = choose_frames(spec.frames, sampling.num_frames, torch.Generator())
    return len(seen), sampling.height, sampling.width


def _start(spec: RewardConfig, placement: PlacementConfig, num_threads: int) -> list[ActorHandle]:
    """The actors of a pool; of a shared one those that are there already."""
    setting = _setting(spec)
    options = {
        "num_cpus": placement.num_cpus,
        "num_gpus": placement.num_gpus,
        "resources": placement.resources,
        "runtime_env": _runtime_env(spec, placement),
        "max_restarts": -1,
        "max_task_retries": placement.max_retries,
    }
    actors = []
    for replica in range(placement.num_replicas):
        shared = {
            "name": f"{_PREFIX}{placement.actor}:{replica}",
            "namespace": NAMESPACE,
            "lifetime": "detached",
            "get_if_exists": True,
        }
        made = ray.remote(RewardActor).options(**options, **(shared if placement.shared else {}))
        actors.append(made.remote(setting, placement.num_gpus, num_threads))
    if placement.shared and (held := _answer(spec, [actors[0].setting.remote()])[0]) != setting:
        raise ConfigError(
            f"{spec.name}.placement: the shared pool {placement.actor!r} holds {held}, this recipe asks for {setting}; "
            "give it another name or stop it with `vader-ray pools --stop NAME`"
        )
    return actors


def _runtime_env(spec: RewardConfig, placement: PlacementConfig) -> RuntimeEnv:
    try:
        return RuntimeEnv(**placement.runtime_env)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{spec.name}.placement.runtime_env: {error}") from error


def _answer(spec: RewardConfig, references: Sequence[ray.ObjectRef[Any]]) -> list[Any]:
    """What new actors say of themselves; those that cannot are the recipe's mistake."""
    try:
        said: list[Any] = ray.get(list(references))
    except RayTaskError as error:
        raise ConfigError(str(error.cause)) from error
    except RuntimeEnvSetupError as error:
        raise ConfigError(
            f"{spec.name}.placement.runtime_env cannot be set up: {first_line(error)}"
        ) from error
    except (ActorDiedError, ActorUnavailableError) as error:
        raise ConfigError(f"{spec.name}.placement: its actor cannot start: {first_line(error)}") from error
    return said


def _setting(spec: RewardConfig) -> dict[str, Any]:
    """What an actor computes: not what an objective makes of it."""
    return spec.model_dump(mode="json", exclude={"weight", "target", "frames", "placement", "label"})


def _shared_pools() -> Mapping[str, list[str]]:
    pools: dict[str, list[str]] = {}
    for actor in list_named_actors(all_namespaces=True):
        if actor["namespace"] == NAMESPACE and actor["name"].startswith(_PREFIX):
            pools.setdefault(actor["name"].removeprefix(_PREFIX).rpartition(":")[0], []).append(actor["name"])
    return dict(sorted(pools.items()))


def _named(actor: str) -> ActorHandle:
    return ray.get_actor(actor, namespace=NAMESPACE)
