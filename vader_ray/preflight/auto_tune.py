"""Which settings make a recipe fit: those that a person is told, and those that ``auto`` chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from vader_ray.config import ConfigError, ExperimentConfig, override
from vader_ray.config.auto import auto_fields, with_settings
from vader_ray.preflight.estimate import Count, count

WORTHWHILE = 0.98
"""A lever that leaves more of the peak than this is not worth a word."""
_FASTEST_FIRST = (
    (False, "none"),
    ("earlier", "none"),
    (False, "attention"),
    (False, "block"),
    (True, "none"),
    (True, "attention"),
    (True, "block"),
)
"""``sampling.recompute`` and ``runtime.activation_checkpointing`` by how much they compute twice. All exact."""


@dataclass(frozen=True, slots=True)
class Remedy:
    """Settings with which a recipe fits, and what it then needs."""

    overrides: tuple[str, ...]
    count: Count


def find_remedies(
    config: ExperimentConfig, found: Count, fits: Mapping[str, Callable[[int], bool]]
) -> dict[str, Remedy]:
    """For each device by name, the settings that make the recipe fit; a device that none of them helps is left out.

    Args:
        found: what the recipe needs as it is.
        fits: whether so many bytes fit on the device.
    """
    overrides, peak = list[str](), found.peak_bytes
    remedies, waiting = dict[str, Remedy](), dict(fits)
    for lever in _levers(config):
        if not waiting:
            break
        tried = count(override(config, [*overrides, lever]))
        if tried.peak_bytes > WORTHWHILE * peak:
            continue
        overrides, peak = [*overrides, lever], tried.peak_bytes
        for name in [name for name, enough in waiting.items() if enough(peak)]:
            remedies[name] = Remedy(tuple(overrides), tried)
            del waiting[name]
    return remedies


def _levers(config: ExperimentConfig) -> Iterator[str]:
    """Settings that lower the peak: first the exact ones, then those that move work elsewhere, then those that round."""
    runtime, model = config.runtime, config.model
    if runtime.activation_checkpointing != "block":
        yield "runtime.activation_checkpointing=block"
    if not model.offload_decoder_cache:
        yield "model.offload_decoder_cache=true"
    if config.sampling.recompute is not True:
        yield "sampling.recompute=true"
    yield from (f"runtime.{name}=1" for name in _BATCHES if getattr(runtime, name) != 1)
    for place, spec in enumerate(config.rewards):
        if spec.placement is None:
            yield f"rewards.{place}.placement.actor={spec.reward.rsplit('.', 1)[-1]}"
    yield from (
        f"rewards.{place}.precision=bfloat16"
        for place, spec in enumerate(config.rewards)
        if spec.precision == "float32"
    )
    yield from (
        f"model.{name}=bfloat16"
        for name in ("precision", "decoder_precision")
        if getattr(model, name) != "bfloat16"
    )


_BATCHES = ("micro_batch_size", "decode_chunk_size", "prefix_batch_size")


def choose(config: ExperimentConfig, fits: Callable[[int], bool]) -> ExperimentConfig:
    """The recipe with every ``auto`` replaced: what is computed twice by the fastest exact setting that fits, then batches.

    Raises:
        ConfigError: none fits.
    """
    left = auto_fields(config)
    sizes = [field for field in _SIZES if field in left]
    if left == sizes:
        chosen = with_settings(config, dict.fromkeys(sizes, 1))
    else:
        chosen = _choose_kept(with_settings(config, dict.fromkeys(sizes, 1)), fits)
    for field in sizes:
        chosen = _grown(chosen, field, fits)
    return chosen


_SIZES = ("runtime.prefix_batch_size", "runtime.micro_batch_size")


def _choose_kept(config: ExperimentConfig, fits: Callable[[int], bool]) -> ExperimentConfig:
    for chosen in _candidates(config):
        if fits((needed := count(chosen)).peak_bytes):
            return chosen
    raise ConfigError(
        f"sampling.recompute and runtime.activation_checkpointing: no setting fits, the smallest needs "
        f"{needed.peak_bytes / 2**30:.1f} GiB; `vader-ray check RECIPE --devices …` names other settings"
    )


def _grown(config: ExperimentConfig, field: str, fits: Callable[[int], bool]) -> ExperimentConfig:
    """With a batch doubled as long as it fits and there are videos for it."""
    size = 2
    while size <= config.videos_per_step // config.runtime.num_workers:
        larger = with_settings(config, {field: size})
        if not fits(count(larger).peak_bytes):
            break
        config, size = larger, 2 * size
    return config


def _candidates(config: ExperimentConfig) -> Iterable[ExperimentConfig]:
    sampling, runtime = config.sampling, config.runtime
    for recompute, kept in _FASTEST_FIRST:
        if sampling.recompute not in ("auto", recompute) or runtime.activation_checkpointing not in (
            "auto",
            kept,
        ):
            continue
        if sampling.recompute == "auto" and recompute == "earlier" and sampling.truncation_depth == 1:
            continue  # the last graded step is the only one
        yield with_settings(
            config, {"sampling.recompute": recompute, "runtime.activation_checkpointing": kept}
        )
