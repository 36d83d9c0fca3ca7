"""Report of ``vader-ray check --devices``: memory and time on devices, and settings that fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table

from vader_ray.config import ExperimentConfig
from vader_ray.config.auto import auto_fields, describe_auto
from vader_ray.errors import UserError
from vader_ray.preflight.auto_tune import Suggestion, choose_auto, suggest_settings
from vader_ray.preflight.devices import GIB, Device, device, is_machine
from vader_ray.preflight.estimate import estimate_step
from vader_ray.preflight.machine_report import machine_parts
from vader_ray.preflight.machines import StepCounter
from vader_ray.preflight.step_counts import StepEstimate


def memory_report(config: ExperimentConfig, names: Sequence[str]) -> Iterator[RenderableType]:
    """Yield the parts of the report as they are computed.

    Args:
        config: the recipe.
        names: names of devices (`vader_ray.preflight.devices.device`), on which the recipe is counted as it
            is, and of machines (`vader_ray.preflight.machines.machine`), for which settings are chosen.

    Raises:
        UserError: the recipe does not fit one of them; the message names the settings that help.
    """
    devices, machines = [each for each in names if not is_machine(each)], list(filter(is_machine, names))
    refusals = list[str]()
    if devices:
        yield from _device_parts(config, devices, refusals)
    if machines:
        yield from machine_parts(config, machines, StepCounter(), refusals)
    if refusals:
        raise UserError("\n".join(refusals))


def _device_parts(
    config: ExperimentConfig, names: Sequence[str], refusals: list[str]
) -> Iterator[RenderableType]:
    devices = {name: device(name) for name in names}
    if fields := auto_fields(config):
        if len(devices) > 1:
            raise UserError(
                "--devices: the recipe has settings that depend on the free memory (auto); name one device"
            )
        config = choose_auto(config, devices[names[0]].fits)
        yield "auto: " + ", ".join(f"{field}: {describe_auto(config, field)}" for field in fields)
    estimate = estimate_step(config)
    yield _summary(estimate)
    if (size := config.runtime.workers_per_video) > 1:
        yield (
            f"{size} workers compute each video together; the numbers are those of one of them, without the "
            "seconds of the network"
        )
    yield _table(estimate, devices)
    too_small = {name: each.fits for name, each in devices.items() if not each.fits(estimate.peak_bytes)}
    if too_small:
        suggestions = suggest_settings(config, estimate, too_small)
        refusals += [_refusal(name, estimate, suggestions.get(name)) for name in too_small]


def _summary(estimate: StepEstimate) -> str:
    parts = {
        "weights": estimate.weights_bytes,
        "conditioning, gradients and optimizer": estimate.state_bytes,
        "a step": estimate.step_bytes,
    }
    listed = ", ".join(f"{name} {num_bytes / GIB:.2f}" for name, num_bytes in parts.items())
    others = f"loading {estimate.load_bytes / GIB:.2f}, an evaluation {estimate.evaluation_bytes / GIB:.2f}"
    return (
        f"memory of one worker, GiB: {listed}; at other times: {others}; "
        f"host memory {estimate.host_bytes / GIB:.2f}\n"
        f"work of one step: {estimate.flops / 1e12:.4g} TFLOP, {sum(estimate.operations.values()):,} kernels"
    )


def _table(estimate: StepEstimate, devices: dict[str, Device]) -> Table:
    table = Table("device", "memory", "peak", "fits", "estimated s / step", box=None)
    for name, each in devices.items():
        fits = "yes" if each.fits(estimate.peak_bytes) else "NO"
        seconds = f"{each.seconds(estimate.operations):.3g}"
        peak = f"{estimate.peak_bytes / GIB:.1f} GiB"
        table.add_row(name, f"{each.memory_gib:.1f} GiB", peak, fits, seconds)
    return table


def _refusal(name: str, estimate: StepEstimate, suggestion: Suggestion | None) -> str:
    peak = f"{name}: {estimate.peak_bytes / GIB:.1f} GiB do not fit"
    if suggestion is None:
        return f"{peak}, and no setting helps; use fewer frames or pixels"
    overrides, lower = " ".join(suggestion.overrides), suggestion.estimate.peak_bytes / GIB
    return f"{peak}; {overrides} makes it {lower:.1f} GiB, which fit"
