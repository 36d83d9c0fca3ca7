"""Settings that may be ``auto``: which they are, and their values where no memory has to be estimated."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from operator import attrgetter

from vader_ray.config.experiment import ExperimentConfig
from vader_ray.config.loading import override
from vader_ray.config.plugins import PlacementConfig

DEFAULTS: dict[str, bool | int | str] = {
    "sampling.recompute": True,
    "runtime.activation_checkpointing": "none",
    "runtime.prefix_batch_size": 2,
    "runtime.micro_batch_size": 1,
}
"""Value of each setting that may be ``auto``, for commands that compute no gradient."""


def auto_fields(config: ExperimentConfig) -> list[str]:
    """List the settings whose value is ``auto``, as dotted paths."""
    fields = [field for field in DEFAULTS if attrgetter(field)(config) == "auto"]
    return [*fields, *auto_placements(config)]


def auto_placements(config: ExperimentConfig) -> dict[str, PlacementConfig]:
    """Return the placements that are used only if needed, by their dotted paths."""
    return {
        f"{section}.{index}.placement": spec.placement
        for section in ("rewards", "eval_rewards")
        for index, spec in enumerate(getattr(config, section))
        if spec.placement is not None and spec.placement.only_if_needed
    }


def describe_auto(config: ExperimentConfig, field: str) -> str:
    """Describe the value of a setting that was ``auto``, given the recipe in which it is replaced."""
    if field in DEFAULTS:
        return str(attrgetter(field)(config))
    section, index, _ = field.split(".")
    placement = getattr(config, section)[int(index)].placement
    if placement is None:
        return "computed in the workers, where it fits beside the model"
    return f"computed by the actor {placement.actor}, since it does not fit beside the model"


def without_auto(config: ExperimentConfig) -> ExperimentConfig:
    """Return the recipe with every ``auto`` replaced by its default, and rewards computed in the workers."""
    return with_placements(with_defaults(config), ())


def with_defaults(config: ExperimentConfig) -> ExperimentConfig:
    """Return the recipe with every ``auto`` but that of placements replaced by its default."""
    defaults = {field: value for field, value in DEFAULTS.items() if attrgetter(field)(config) == "auto"}
    return with_settings(config, defaults)


def with_placements(config: ExperimentConfig, used: Collection[str]) -> ExperimentConfig:
    """Return the recipe with each placement that is used only if needed either used or left out.

    Args:
        used: dotted paths of those that are used.
    """
    decided = {
        f"{path}.only_if_needed" if path in used else path: False if path in used else None
        for path in auto_placements(config)
    }
    return override(config, decided) if decided else config


def with_settings(config: ExperimentConfig, settings: Mapping[str, bool | int | str]) -> ExperimentConfig:
    """Return the recipe with settings, given as dotted paths, replaced."""
    return override(config, [f"{field}={str(value).lower()}" for field, value in settings.items()])
