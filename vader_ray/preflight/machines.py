"""Settings with which a recipe runs fastest on all GPUs of a machine, such as ``8xrtx4090``.

The step is counted on the meta device once for each choice of settings that change it, among them the number
of workers that compute a video together; every division of the weights over workers and host memory follows
from one count (`vader_ray.preflight.step_counts.StepCount`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from vader_ray.alignment import algorithms
from vader_ray.config import ExperimentConfig, override
from vader_ray.config.auto import auto_fields, with_placements, with_settings
from vader_ray.errors import UserError
from vader_ray.preflight.auto_tune import WORTHWHILE, combined, exact_settings, rounding_settings
from vader_ray.preflight.devices import Device, check_devices, device, split_machine
from vader_ray.preflight.estimate import count_step
from vader_ray.preflight.step_counts import StepCount, StepEstimate

_MOST_MEMORY: dict[str, bool | int | str] = {
    "sampling.recompute": False,
    "runtime.activation_checkpointing": "none",
    "runtime.prefix_batch_size": 1,
    "runtime.micro_batch_size": 1,
}
"""Settings with which the search begins instead of ``auto``: nothing is recomputed."""
_WHOLE = ("runtime.shard=1", "runtime.offload_weights=false")
CountStep: TypeAlias = Callable[[ExperimentConfig], StepCount]
"""Counts of one worker's step, e.g. a `StepCounter`."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Equal GPUs that are connected directly."""

    name: str
    """Number and device as the user wrote them."""
    num_gpus: int
    device: Device


@dataclass(frozen=True, slots=True)
class Plan:
    """Settings of a recipe on a machine, and what a step takes with them."""

    settings: tuple[str, ...]
    """Settings as ``a.b=value``, relative to the recipe."""
    config: ExperimentConfig
    estimate: StepEstimate
    computing_seconds: float
    """Estimated seconds of a step's kernels."""
    traffic_seconds: float
    """Estimated seconds of a step's traffic; an upper bound of what it adds, because FSDP gathers ahead."""
    fits: bool

    @property
    def is_divided(self) -> bool:
        """Whether weights are sent in every step."""
        return self.config.runtime.shard > 1 or self.config.runtime.offload_weights


def machine(name: str) -> Machine:
    """Return the machine of a name such as ``8xrtx4090`` or ``8x24GB``.

    Raises:
        UserError: as `check_devices`.
    """
    check_devices([name])
    num_gpus, card = split_machine(name)
    assert num_gpus is not None
    return Machine(name, num_gpus, device(card))


class StepCounter:
    """Count each recipe's step once; of settings that differ in the division of weights, one count serves."""

    def __init__(self, count: CountStep = count_step) -> None:
        self._count, self._known = count, dict[str, StepCount]()

    def __call__(self, config: ExperimentConfig) -> StepCount:
        """Return the counts of one worker."""
        changes = {
            "num_workers": config.runtime.workers_per_video,
            "min_workers": None,
            "shard": 1,
            "offload_weights": False,
        }
        alone = config.model_copy(
            update={
                "videos_per_step": config.videos_per_step // config.runtime.num_video_groups,
                "runtime": config.runtime.model_copy(update=changes),
            }
        )
        key = alone.model_dump_json()
        if key not in self._known:
            self._known[key] = self._count(alone)
        return self._known[key]


def num_workers(config: ExperimentConfig, num_gpus: int, size: int) -> int:
    """Return the largest number of workers that share a step's videos evenly, beside GPUs of rewards.

    Args:
        config: the recipe.
        num_gpus: of the machine.
        size: number of workers that compute each video together.

    Raises:
        UserError: the rewards' actors take all GPUs, or leave too few.
    """
    free = _free_gpus(config, num_gpus)
    if free <= 0:
        raise UserError(
            f"--devices: actors of rewards reserve {num_gpus - free} of {num_gpus} GPUs and leave none for "
            "workers; lower placement.num_gpus or name a larger machine"
        )
    groups = [each for each in range(1, free // size + 1) if config.videos_per_step % each == 0]
    if not groups:
        raise UserError(
            f"--devices: {size} workers compute each video together, and {free} GPUs are left for workers; "
            "lower runtime.context_parallel or name a larger machine"
        )
    return size * max(groups)


def _free_gpus(config: ExperimentConfig, num_gpus: int) -> int:
    """Return the number of GPUs that no reward's actor reserves."""
    placements = [spec.placement for spec in (*config.rewards, *config.eval_rewards) if spec.placement]
    return num_gpus - math.ceil(sum(each.num_gpus * each.num_replicas for each in placements))


def find_plan(config: ExperimentConfig, machine: Machine, count: CountStep) -> Plan:
    """Return the fastest plan that fits, or that with the lowest peak if none does.

    Settings that lower the peak are added one by one, exact ones first, until a plan fits without sending or
    copying weights; then several workers compute each video, if that lowers the peak. Settings that round are
    added only if no exact plan fits. GPUs without a video of their own help with those of others, if that is
    faster. Rewards with ``placement: auto`` are computed in the workers.

    Args:
        config: the recipe; its ``runtime.context_parallel`` and ``guidance_parallel`` are kept, if set.
        machine: its GPUs.
        count: counts of one worker's step, e.g. a `StepCounter`.

    Raises:
        UserError: the recipe does not allow this number of workers, or cannot be counted (`count_step`).
    """
    config = with_placements(config, ())
    config = with_settings(config, {field: _MOST_MEMORY[field] for field in auto_fields(config)})
    search = _Search(config, machine, count)
    for setting in exact_settings(config):
        if search.fits(without_moving_weights=True):
            break
        search.add(setting)
    if not search.fits(without_moving_weights=True):
        search.divide_videos()
    for setting in rounding_settings(config):
        if search.fits():
            break
        search.add(setting)
    if search.fits():
        search.use_idle_gpus()
    return search.best()


@dataclass(frozen=True, slots=True)
class _Group:
    """Workers that compute each video together."""

    size: int
    settings: tuple[str, ...] = ()


def _groups(size: int) -> Iterator[_Group]:
    """Yield the ways in which ``size`` workers divide a video: by its tokens, and by guidance branches."""
    yield _Group(size, (f"runtime.context_parallel={size}",))
    if size == 2:
        yield _Group(size, ("runtime.guidance_parallel=true",))
    elif size % 2 == 0:
        yield _Group(size, (f"runtime.context_parallel={size // 2}", "runtime.guidance_parallel=true"))


class _Search:
    """Plans that were tried, and what every further plan has: settings that lowered the peak."""

    def __init__(self, config: ExperimentConfig, machine: Machine, count: CountStep) -> None:
        self._config, self._machine, self._count = config, machine, count
        self._settings, self._group = tuple[str, ...](), _Group(config.runtime.workers_per_video)
        workers = num_workers(config, machine.num_gpus, self._group.size)
        algorithms.check(override(config, [f"runtime.num_workers={workers}", *_WHOLE]))
        self._plans = list[Plan]()
        self._latest = self._try(self._settings, self._group)

    def fits(self, *, without_moving_weights: bool = False) -> bool:
        """Whether a plan fits."""
        return any(plan.fits and not (without_moving_weights and plan.is_divided) for plan in self._plans)

    def best(self) -> Plan:
        """Return the fastest plan that fits, or that with the lowest peak if none does."""
        if fitting := [plan for plan in self._plans if plan.fits]:
            return min(fitting, key=lambda plan: plan.computing_seconds + plan.traffic_seconds)
        return min(self._plans, key=lambda plan: plan.estimate.peak_bytes)

    def add(self, setting: str) -> None:
        """Try a setting, and keep it if the recipe allows it and it lowers the peak."""
        settings = (*self._settings, setting)
        tried = self._try(settings, self._group)
        if self._is_lower(tried):
            self._settings, self._latest = settings, tried

    def divide_videos(self) -> None:
        """Let more and more workers compute each video while that lowers the peak and nothing fits."""
        for size in self._group_sizes():
            tried = {group: self._try(self._settings, group) for group in _groups(size)}
            if not any(tried.values()):
                continue
            group = min(tried, key=lambda each: _lowest(tried[each]))
            if not self._is_lower(tried[group]):
                return
            self._group, self._latest = group, tried[group]
            if self.fits(without_moving_weights=True):
                return

    def use_idle_gpus(self) -> None:
        """Try plans with several workers for each video if more GPUs work in them than in the best one."""
        num_gpus, working = self._machine.num_gpus, self.best().config.runtime.num_workers
        workers = {size: num_workers(self._config, num_gpus, size) for size in self._group_sizes()}
        for size in sorted(workers, key=lambda size: (-workers[size], size)):
            if workers[size] <= working:
                return
            tried = [self._try(self._settings, group) for group in _groups(size)]
            if any(tried):
                return

    def _group_sizes(self) -> list[int]:
        """Return the numbers of workers that may compute a video; none if the recipe states it."""
        free = _free_gpus(self._config, self._machine.num_gpus)
        is_stated = self._config.runtime.workers_per_video > 1
        return [] if is_stated else [size for size in range(2, free + 1) if free % size == 0]

    def _is_lower(self, plans: list[Plan]) -> bool:
        return _lowest(plans) <= WORTHWHILE * _lowest(self._latest)

    def _try(self, settings: tuple[str, ...], group: _Group) -> list[Plan]:
        """Return one more plan for each division of weights that the recipe's rules allow."""
        workers = num_workers(self._config, self._machine.num_gpus, group.size)
        settings = (f"runtime.num_workers={workers}", *settings, *group.settings)
        found = combined(self._config, [*settings, *_WHOLE])
        counted = found and self._counted(found, group)
        if not (found and counted):
            return []
        divided = (combined(found, list(each)) for each in divisions(workers))
        tried = [self._plan(settings, each, counted) for each in divided if each]
        self._plans += tried
        return tried

    def _counted(self, config: ExperimentConfig, group: _Group) -> StepCount | None:
        """Return the counts; None if the tokens or attention heads cannot be divided over a group."""
        try:
            return self._count(config)
        except UserError:
            if not group.settings:
                raise
            return None

    def _plan(self, settings: tuple[str, ...], config: ExperimentConfig, counted: StepCount) -> Plan:
        estimate, card = counted.estimate(config.runtime), self._machine.device
        return Plan(
            (*settings, *_division(self._config, config)),
            config,
            estimate,
            card.seconds(estimate.operations),
            card.traffic_seconds(estimate.traffic),
            card.fits(estimate.peak_bytes),
        )


def divisions(workers: int) -> Iterator[tuple[str, ...]]:
    """List the settings that divide the weights over the workers and host memory of a machine."""
    for shard in (each for each in range(1, workers + 1) if workers % each == 0):
        for offload in ("false", "true"):
            yield (f"runtime.shard={shard}", f"runtime.offload_weights={offload}")


def _division(recipe: ExperimentConfig, config: ExperimentConfig) -> Iterator[str]:
    """Yield the settings that divide the weights otherwise than the recipe."""
    for name in ("shard", "offload_weights"):
        value = getattr(config.runtime, name)
        if value != getattr(recipe.runtime, name):
            yield f"runtime.{name}={str(value).lower()}"


def _lowest(plans: list[Plan]) -> float:
    return min((plan.estimate.peak_bytes for plan in plans), default=math.inf)
