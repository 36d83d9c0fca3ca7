"""Settings that may be ``auto``: which they are, and their values where no memory has to be estimated."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter

from vader_ray.config.experiment import ExperimentConfig
from vader_ray.config.loading import override

DEFAULTS: dict[str, bool | int | str] = {
    "sampling.recompute": True,
    "runtime.activation_checkpointing": "none",
    "runtime.prefix_batch_size": 2,
    "runtime.micro_batch_size": 1,
}
"""Value of each setting that may be ``auto``, for commands that compute no gradient."""


def auto_fields(config: ExperimentConfig) -> list[str]:
    """List the settings whose value is ``auto``, as dotted paths."""
    return [field for field in DEFAULTS if attrgetter(field)(config) == "auto"]


def without_auto(config: ExperimentConfig) -> ExperimentConfig:
    """Return the recipe with every ``auto`` replaced by its default."""
    return with_settings(config, {field: DEFAULTS[field] for field in auto_fields(config)})


def with_settings(config: ExperimentConfig, settings: Mapping[str, bool | int | str]) -> ExperimentConfig:
    """Return the recipe with settings, given as dotted paths, replaced."""
    return override(config, [f"{field}={str(value).lower()}" for field, value in settings.items()])
