"""Find algorithms by name, check their options and create them.

A file of this folder is an algorithm: ``ddpo.py`` is the algorithm ``ddpo``. It defines its options, a frozen
pydantic model, and one class whose name ends in ``Algorithm``, a subclass of
`vader_ray.alignment.base.Algorithm`. A dotted name reaches an algorithm outside the package: ``my.module``
(the only such class of the module) or ``my.module.ClassName``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vader_ray.alignment.base import Algorithm
from vader_ray.config import AlgorithmConfig, ExperimentConfig, SamplingConfig, explain
from vader_ray.errors import UserError
from vader_ray.plugins import ALGORITHMS

__all__ = ["build", "check", "names", "resolve"]

_GRADIENT_STEP_FIELDS = (
    "truncation",
    "truncation_depth",
    "truncation_options",
    "truncation_clips",
    "num_endings",
    "num_clips",
    "recompute",
    "guidance_interval",
    "prefix_cache",
)
"""Settings of ``sampling`` that only algorithms with gradient steps read."""


def names() -> list[str]:
    """Return the names of the algorithms of this package."""
    return ALGORITHMS.names()


def resolve(name: str) -> type[Algorithm[Any]]:
    """Return the class of an algorithm.

    Raises:
        UserError: there is no such algorithm; the message gives the rule and the names.
    """
    found = ALGORITHMS.resolve(name)
    if not (isinstance(found, type) and issubclass(found, Algorithm)):
        raise UserError(
            f"algorithm.name: {name} is no algorithm; name a subclass of {Algorithm.__module__}.Algorithm"
        )
    return found


def check(config: ExperimentConfig, *, folder: Path | None = None) -> AlgorithmConfig:
    """Return the recipe's algorithm with all options, defaults included, and absolute paths.

    Args:
        config: the recipe.
        folder: folder at which relative paths start.

    Raises:
        UserError: unknown algorithm or option, a wrong type, a path that does not exist, or another setting
            of the recipe that does not fit the algorithm; one line each.
    """
    algorithm = build(config, folder=folder)
    if not algorithm.uses_gradient_steps:
        _refuse_gradient_steps(config.algorithm.name, config.sampling)
        _refuse_dropout(config)
    if config.runtime.shard > 1 and algorithm.calls_depend_on_videos:
        raise UserError(
            f"algorithm.name={config.algorithm.name} calls the denoiser at steps that depend on the video, "
            f"and runtime.shard={config.runtime.shard} needs the same calls on all workers of a group; set "
            "runtime.shard=1"
        )
    if config.runtime.workers_per_video > 1 and not algorithm.uses_gradient_steps:
        raise UserError(
            f"algorithm.name={config.algorithm.name} cannot be combined with runtime.context_parallel or "
            "runtime.guidance_parallel, which divide the gradient of a reward; set context_parallel=1 and "
            "guidance_parallel=false, or name=vader"
        )
    algorithm.check(config)
    return AlgorithmConfig(name=config.algorithm.name, **algorithm.settings.model_dump(mode="json"))


def build(config: ExperimentConfig, *, folder: Path | None = None) -> Algorithm[Any]:
    """Create the recipe's algorithm.

    Args:
        config: the recipe.
        folder: folder at which relative paths start.

    Raises:
        UserError: unknown algorithm or option, a wrong type, or a path that does not exist; one line each.
    """
    algorithm = resolve(config.algorithm.name)
    options = algorithm.settings_class
    try:
        settings = options.model_validate(config.algorithm.options, context={"folder": folder})
    except ValidationError as error:
        raise UserError("\n".join(explain(error, options, section="algorithm"))) from None
    return algorithm(settings, config.sampling)


def _refuse_gradient_steps(name: str, sampling: SamplingConfig) -> None:
    for field in _GRADIENT_STEP_FIELDS:
        default = type(sampling).model_fields[field].get_default(call_default_factory=True)
        if (value := getattr(sampling, field)) != default:
            raise UserError(
                f"sampling.{field}={value} has no effect on algorithm.name={name}; "
                f"set it to {default}, or name=vader"
            )


def _refuse_dropout(config: ExperimentConfig) -> None:
    for index, reward in enumerate(config.rewards):
        if reward.dropout:
            raise UserError(
                f"rewards.{index}.dropout={reward.dropout:g} changes the objective from step to step, and "
                f"algorithm.name={config.algorithm.name} compares objectives; set it to 0, or name=vader"
            )
