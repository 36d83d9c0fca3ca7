"""What ``vader-ray check --devices`` says: how much a recipe needs, on which devices it fits, and what makes it fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import attrgetter

from rich.console import RenderableType
from rich.table import Table

from vader_ray.config import ConfigError, ExperimentConfig
from vader_ray.config.auto import auto_fields
from vader_ray.preflight.auto_tune import Remedy, choose, find_remedies
from vader_ray.preflight.devices import GIB, Device, device
from vader_ray.preflight.estimate import Count, count


def memory_report(config: ExperimentConfig, names: Sequence[str]) -> Iterator[RenderableType]:
    """What to print for devices of these names, as it becomes known.

    Raises:
        ConfigError: the recipe does not fit on one of them; names the settings that help.
    """
    devices = {name: device(name) for name in names}
    if left := auto_fields(config):
        if len(devices) > 1:
            raise ConfigError(
                "--devices: the recipe leaves settings to the free memory (auto), so name one device"
            )
        config = choose(config, devices[names[0]].fits)
        yield "auto: " + ", ".join(f"{field}={attrgetter(field)(config)}" for field in left)
    found = count(config)
    yield _counted(found)
    yield _table(found, devices)
    small = {name: each.fits for name, each in devices.items() if not each.fits(found.peak_bytes)}
    if small:
        remedies = find_remedies(config, found, small)
        raise ConfigError("\n".join(_too_small(name, found, remedies.get(name)) for name in small))


def _counted(found: Count) -> str:
    parts = {
        "weights": found.weights_bytes,
        "conditioning, gradients and optimizer": found.state_bytes,
        "a step": found.step_bytes,
    }
    listed = ", ".join(f"{name} {num_bytes / GIB:.2f}" for name, num_bytes in parts.items())
    others = f"loading {found.load_bytes / GIB:.2f}, an evaluation {found.evaluation_bytes / GIB:.2f}"
    return (
        f"counted for one worker, GiB: {listed}; beside these: {others}, host memory {found.host_bytes / GIB:.2f}\n"
        f"counted for one step: {found.flops / 1e12:.4g} TFLOP, {sum(found.operations.values()):,} kernels"
    )


def _table(found: Count, devices: dict[str, Device]) -> Table:
    table = Table("device", "memory", "counted peak", "fits", "estimated s / step", box=None)
    for name, each in devices.items():
        fits = "yes" if each.fits(found.peak_bytes) else "NO"
        seconds = f"{each.seconds(found.operations):.3g}"
        table.add_row(name, f"{each.memory_gib:.1f} GiB", f"{found.peak_bytes / GIB:.1f} GiB", fits, seconds)
    return table


def _too_small(name: str, found: Count, remedy: Remedy | None) -> str:
    if remedy is None:
        return f"{name}: {found.peak_bytes / GIB:.1f} GiB do not fit, and no setting helps; use fewer frames or pixels"
    overrides, peak = " ".join(remedy.overrides), remedy.count.peak_bytes / GIB
    return (
        f"{name}: {found.peak_bytes / GIB:.1f} GiB do not fit; {overrides} makes it {peak:.1f} GiB, which fit"
    )
