"""Settings with which a recipe fits into memory: suggestions for the user, and values for ``auto``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import inf

from vader_ray import models
from vader_ray.alignment import algorithms
from vader_ray.config import ExperimentConfig, override
from vader_ray.config.auto import (
    auto_fields,
    auto_placements,
    with_defaults,
    with_placements,
    with_settings,
)
from vader_ray.errors import UserError
from vader_ray.preflight.estimate import estimate_step
from vader_ray.preflight.step_counts import StepEstimate

WORTHWHILE = 0.98
"""Suggest a setting only if it lowers the peak below this fraction."""
_FASTEST_FIRST = (
    (False, "none"),
    ("earlier", "none"),
    (False, "attention"),
    (False, "block"),
    (True, "none"),
    (True, "attention"),
    (True, "block"),
    ("nested", "attention"),
    ("nested", "block"),
)
"""Pairs of ``sampling.recompute`` and ``runtime.activation_checkpointing``, those that recompute least first.
All are exact. True and False are the same where blocks are recomputed."""
_BATCH_SIZES = ("runtime.prefix_batch_size", "runtime.micro_batch_size")
"""Batch sizes that may be ``auto``, in the order in which they are doubled."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """Settings with which a recipe fits into the memory of a device."""

    overrides: tuple[str, ...]
    """Settings as ``a.b=value``."""
    estimate: StepEstimate
    """Memory and work of a step with these settings."""


def suggest_settings(
    config: ExperimentConfig, estimate: StepEstimate, fits: Mapping[str, Callable[[int], bool]]
) -> dict[str, Suggestion]:
    """Find settings with which the recipe fits; a device for which there are none is left out.

    Args:
        config: the recipe.
        estimate: memory and work of its step.
        fits: for each device by name, whether a number of bytes fits into its memory.
    """
    overrides, peak = list[str](), estimate.peak_bytes
    suggestions, too_small = dict[str, Suggestion](), dict(fits)
    for setting in _memory_settings(config):
        if not too_small:
            break
        changed = combined(config, [*overrides, setting])
        if changed is None:
            continue
        tried = estimate_step(changed)
        if tried.peak_bytes > WORTHWHILE * peak:
            continue
        overrides, peak = [*overrides, setting], tried.peak_bytes
        for name in [name for name, fits_device in too_small.items() if fits_device(peak)]:
            suggestions[name] = Suggestion(tuple(overrides), tried)
            del too_small[name]
    return suggestions


def _memory_settings(config: ExperimentConfig) -> Iterator[str]:
    """Settings that lower the peak: exact ones, then other processes, then lower precision."""
    runtime = config.runtime
    yield from exact_settings(config)
    if runtime.shard == 1 < runtime.num_workers:
        yield f"runtime.shard={runtime.num_workers}"
    if not runtime.offload_weights:
        yield "runtime.offload_weights=true"
    local = {i: spec.reward.rsplit(".", 1)[-1] for i, spec in enumerate(config.rewards) if not spec.placement}
    yield from (f"rewards.{i}.placement.actor={name}" for i, name in local.items())
    yield from rounding_settings(config)


def exact_settings(config: ExperimentConfig) -> Iterator[str]:
    """Yield exact settings of one process that lower its peak, the cheapest first."""
    runtime = config.runtime
    if runtime.activation_checkpointing != "block":
        yield "runtime.activation_checkpointing=block"
    if not config.model.offload_decoder_cache:
        yield "model.offload_decoder_cache=true"
    if config.sampling.recompute not in (True, "nested"):
        yield "sampling.recompute=true"
    if config.sampling.recompute != "nested":
        yield "sampling.recompute=nested"
    sizes = ("micro_batch_size", "decode_chunk_size", "prefix_batch_size")
    yield from (f"runtime.{name}=1" for name in sizes if getattr(runtime, name) != 1)


def rounding_settings(config: ExperimentConfig) -> Iterator[str]:
    """Yield settings that lower the peak and round: half precision of rewards and model, then int8."""
    for name, specs in (("rewards", config.rewards), ("eval_rewards", config.eval_rewards)):
        wide = [i for i, spec in enumerate(specs) if spec.precision == "float32" and not spec.placement]
        yield from (f"{name}.{i}.precision=bfloat16" for i in wide)
    precisions = ("precision", "decoder_precision")
    yield from (f"model.{name}=bfloat16" for name in precisions if getattr(config.model, name) != "bfloat16")
    if config.model.quantization is None:
        yield "model.quantization=int8"


def combined(config: ExperimentConfig, settings: list[str]) -> ExperimentConfig | None:
    """Return the recipe with the settings; None if it would be refused with them."""
    try:
        changed = override(config, settings)
        algorithms.check(changed)
        models.check_parallel(changed.model.family, changed.runtime)
    except UserError:
        return None
    return changed


def choose_auto(
    config: ExperimentConfig, fits: Callable[[int], bool], num_free_gpus: float = inf
) -> ExperimentConfig:
    """Replace every ``auto`` by the fastest choice that fits: recomputation first, then batch sizes.

    Rewards with ``placement: auto`` stay in the workers if a choice fits; otherwise as few of them as
    possible are placed on other GPUs, those first that take most memory.

    Args:
        config: the recipe.
        fits: whether a number of bytes fits into the free memory.
        num_free_gpus: GPUs of the cluster that no worker and no other reward needs.

    Raises:
        UserError: no choice fits.
    """
    automatic = auto_placements(config)
    for placed in _placements(config, num_free_gpus):
        try:
            return _choose_settings(placed, fits, must_fit=bool(automatic))
        except UserError as error:
            refusal = str(error)
    if automatic:
        refusal += f"; for {', '.join(automatic)} the cluster has {num_free_gpus:g} free GPUs"
    raise UserError(refusal)


def _placements(config: ExperimentConfig, num_free_gpus: float) -> Iterator[ExperimentConfig]:
    """Yield the recipe with every automatic placement left out, then with more and more of them used."""
    yield with_placements(config, ())
    placements = auto_placements(config)
    alone = with_defaults(config)
    peaks = {path: estimate_step(with_placements(alone, {path})).peak_bytes for path in placements}
    used = list[str]()
    for path in sorted(placements, key=peaks.__getitem__):
        num_free_gpus -= placements[path].num_replicas * placements[path].num_gpus
        if num_free_gpus < 0:
            return
        used.append(path)
        yield with_placements(config, used)


def _choose_settings(
    config: ExperimentConfig, fits: Callable[[int], bool], *, must_fit: bool
) -> ExperimentConfig:
    fields = auto_fields(config)
    sizes = [field for field in _BATCH_SIZES if field in fields]
    chosen = with_settings(config, dict.fromkeys(sizes, 1))
    if must_fit or fields != sizes:
        chosen = _choose_recomputation(chosen, fits)
    for field in sizes:
        chosen = _double(chosen, field, fits)
    return chosen


def _choose_recomputation(config: ExperimentConfig, fits: Callable[[int], bool]) -> ExperimentConfig:
    for candidate in _recomputations(config):
        if fits((estimate := estimate_step(candidate)).peak_bytes):
            return candidate
    raise UserError(
        f"sampling.recompute and runtime.activation_checkpointing: no setting fits, the smallest needs "
        f"{estimate.peak_bytes / 2**30:.1f} GiB; `vader-ray check RECIPE --devices …` names other settings"
    )


def _double(config: ExperimentConfig, field: str, fits: Callable[[int], bool]) -> ExperimentConfig:
    """Double a batch size of 1 while the step fits and the worker has enough videos."""
    size = 2
    while size <= config.videos_per_step // config.runtime.num_video_groups:
        larger = with_settings(config, {field: size})
        if not fits(estimate_step(larger).peak_bytes):
            break
        config, size = larger, 2 * size
    return config


def _recomputations(config: ExperimentConfig) -> Iterable[ExperimentConfig]:
    """The recipe with each choice of recomputation that it leaves open, the fastest first."""
    sampling, runtime = config.sampling, config.runtime
    for recompute, checkpointing in _FASTEST_FIRST:
        if sampling.recompute not in ("auto", recompute):
            continue
        if runtime.activation_checkpointing not in ("auto", checkpointing):
            continue
        if sampling.recompute == "auto" and recompute == "earlier" and sampling.max_grad_steps() == 1:
            continue  # there is no earlier gradient step
        if sampling.recompute == "auto" and recompute is True and checkpointing != "none":
            continue  # as False
        yield with_settings(
            config, {"sampling.recompute": recompute, "runtime.activation_checkpointing": checkpointing}
        )
