"""Settings with which a recipe runs fastest on all GPUs of a machine, such as ``8xrtx4090``.

The step is counted on the meta device once for each choice of settings that change it; every division of the
weights over workers and host memory follows from one count (`vader_ray.preflight.estimate.StepCount`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter

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


def is_machine(name: str) -> bool:
    """Whether a name begins with a number of GPUs."""
    return split_machine(name)[0] is not None


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

    def __init__(self, count: Callable[[ExperimentConfig], StepCount] = count_step) -> None:
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


def num_workers(config: ExperimentConfig, num_gpus: int) -> int:
    """Return the largest number of workers that share a step's videos evenly, beside GPUs of rewards.

    Raises:
        UserError: the rewards' actors take all GPUs.
    """
    placements = [spec.placement for spec in (*config.rewards, *config.eval_rewards) if spec.placement]
    taken = math.ceil(sum(each.num_gpus * each.num_replicas for each in placements))
    if taken >= num_gpus:
        raise UserError(
            f"--devices: actors of rewards reserve {taken} of {num_gpus} GPUs and leave none for workers; "
            "lower placement.num_gpus or name a larger machine"
        )
    size = config.runtime.workers_per_video
    groups = [each for each in range(1, (num_gpus - taken) // size + 1) if config.videos_per_step % each == 0]
    if not groups:
        raise UserError(
            f"--devices: {size} workers compute each video together, and {num_gpus - taken} GPUs are left "
            "for workers; lower runtime.context_parallel or name a larger machine"
        )
    return size * max(groups)


def find_plan(
    config: ExperimentConfig, machine: Machine, count: Callable[[ExperimentConfig], StepCount]
) -> Plan:
    """Return the fastest plan that fits, or that with the lowest peak if none does.

    Settings that lower the peak are added one by one, exact ones first, until a plan fits without sending or
    copying weights; settings that round are added only if no exact plan fits. Rewards with
    ``placement: auto`` are computed in the workers.

    Args:
        config: the recipe.
        machine: its GPUs.
        count: counts of one worker's step, e.g. a `StepCounter`.

    Raises:
        UserError: the recipe does not allow this number of workers, or cannot be counted (`count_step`).
    """
    config = with_placements(config, ())
    config = with_settings(config, {field: _MOST_MEMORY[field] for field in auto_fields(config)})
    settings: tuple[str, ...] = (f"runtime.num_workers={num_workers(config, machine.num_gpus)}",)
    algorithms.check(override(config, [*settings, *_WHOLE]))
    plans = latest = list(_plans(config, settings, machine, count))
    ladder = [(True, each) for each in exact_settings(config)]
    ladder += [(False, each) for each in rounding_settings(config)]
    for is_exact, setting in ladder:
        fitting = [plan for plan in plans if plan.fits]
        if any(not plan.is_divided for plan in fitting) or (fitting and not is_exact):
            break
        tried = list(_plans(config, (*settings, setting), machine, count))
        if tried and _lowest(tried) <= WORTHWHILE * _lowest(latest):
            settings, latest, plans = (*settings, setting), tried, plans + tried
    if fitting := [plan for plan in plans if plan.fits]:
        return min(fitting, key=lambda plan: plan.computing_seconds + plan.traffic_seconds)
    return min(plans, key=lambda plan: plan.estimate.peak_bytes)


def divisions(workers: int) -> Iterator[tuple[str, ...]]:
    """List the settings that divide a step over the workers and host memory of a machine.

    ``runtime.context_parallel`` and ``guidance_parallel`` of the recipe are kept, for each needs a count of
    its own.
    """
    for shard in (each for each in range(1, workers + 1) if workers % each == 0):
        for offload in ("false", "true"):
            yield (f"runtime.shard={shard}", f"runtime.offload_weights={offload}")


def _plans(
    config: ExperimentConfig,
    settings: tuple[str, ...],
    machine: Machine,
    count: Callable[[ExperimentConfig], StepCount],
) -> Iterator[Plan]:
    """Yield one plan for each division that the recipe's rules allow."""
    whole = combined(config, [*settings, *_WHOLE])
    if whole is None:
        return
    for division in divisions(whole.runtime.num_workers):
        changed = combined(whole, list(division))
        if changed is None:
            continue
        estimate = count(changed).estimate(changed.runtime)
        yield Plan(
            (*settings, *(each for each in division if _differs(each, config, changed))),
            changed,
            estimate,
            machine.device.seconds(estimate.operations),
            machine.device.traffic_seconds(estimate.traffic),
            machine.device.fits(estimate.peak_bytes),
        )


def _differs(setting: str, config: ExperimentConfig, changed: ExperimentConfig) -> bool:
    value = attrgetter(setting.partition("=")[0])
    return bool(value(config) != value(changed))


def _lowest(plans: Sequence[Plan]) -> int:
    return min(plan.estimate.peak_bytes for plan in plans)
