"""Find metrics by name, check their options and load them: numbers that are measured and never trained.

A file of this folder is a metric: ``motion.py`` is the metric ``motion``. It defines one class whose name
ends in ``Metric``; the keyword arguments of this class are the metric's options in a recipe. A dotted name
reaches a metric outside the package: ``my.module`` (the only such class of the module) or
``my.module.ClassName``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch

from vader_ray.config import ExperimentConfig, MetricConfig
from vader_ray.errors import UserError
from vader_ray.metrics.base import Features, Metric, PairedMetric, SetMetric, VideoMetric
from vader_ray.metrics.core.contract import check_contract
from vader_ray.plugin_options import check_options, load_plugin
from vader_ray.plugins import METRICS

__all__ = [
    "Features",
    "Metric",
    "PairedMetric",
    "SetMetric",
    "VideoMetric",
    "build",
    "check",
    "check_contract",
    "measured_metrics",
    "names",
    "resolve",
]


def names() -> list[str]:
    """Return the names of the metrics of this package."""
    return METRICS.names()


def resolve(name: str) -> type[Any]:
    """Return the class of a metric.

    Raises:
        UserError: there is no such metric; the message gives the rule and the names.
    """
    found = METRICS.resolve(name)
    if not isinstance(found, type):
        raise UserError(f"metric: {name} is a {type(found).__name__}; name a class")
    return found


def check(spec: MetricConfig, *, folder: Path | None = None) -> MetricConfig:
    """Return the setting with absolute local paths; a relative one starts at ``folder``. Loads no weights.

    Raises:
        UserError: unknown metric, unknown option, an option of the wrong type or a path that does not
            exist; one line each.
    """
    return spec.model_copy(update=check_options(resolve(spec.metric), spec, folder))


def build(spec: MetricConfig, *, device: torch.device | str) -> Metric:
    """Load a metric; its networks are frozen, in eval mode and on ``device``, in the precision of ``spec``.

    Raises:
        UserError: as `check`, and weights that are missing, unreadable or of another network.
    """
    return cast(Metric, load_plugin(resolve(spec.metric), spec, device=device))


def measured_metrics(config: ExperimentConfig) -> dict[str, type[Any]]:
    """Map the logged names of the recipe's metrics, such as ``eval/motion``, to the metrics' classes."""
    found: dict[str, type[Any]] = {}
    for spec in config.all_metrics():
        metric = resolve(spec.metric)
        parts = getattr(metric, "parts", ())
        found |= dict.fromkeys(
            [f"eval/{spec.name}/{part}" for part in parts] or [f"eval/{spec.name}"], metric
        )
    return found
