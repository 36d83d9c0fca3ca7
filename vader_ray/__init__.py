"""Align video diffusion models with reward gradients (VADER, arXiv 2407.08737) on Ray, tracked by MLflow.

The names below are the public Python API; each is imported when it is first used, so ``import vader_ray``
imports no framework. ``vader-ray --help`` lists the commands.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.tune import choice as choice
    from ray.tune import grid_search as grid_search
    from ray.tune import loguniform as loguniform
    from ray.tune import uniform as uniform

    from vader_ray.api import evaluate as evaluate
    from vader_ray.api import generate as generate
    from vader_ray.api import load_recipe as load_recipe
    from vader_ray.api import load_reward as load_reward
    from vader_ray.api import packaged_weights as packaged_weights
    from vader_ray.api import sweep as sweep
    from vader_ray.api import train as train
    from vader_ray.config import ExperimentConfig as ExperimentConfig
    from vader_ray.errors import RunFailed as RunFailed
    from vader_ray.errors import UserError as UserError
    from vader_ray.models import VideoModel as VideoModel
    from vader_ray.models import load_adapter as load_adapter
    from vader_ray.orchestration.publishing.push import push_to_hub as push_to_hub
    from vader_ray.orchestration.runs.summary import RunSummary as RunSummary
    from vader_ray.training.callbacks import Callback as Callback
    from vader_ray.training.trainer import Trainer as Trainer
    from vader_ray.training.trainer import TrainerStep as TrainerStep

__version__ = "0.1.0"

_MODULES = {
    "Callback": "vader_ray.training.callbacks",
    "ExperimentConfig": "vader_ray.config",
    "RunFailed": "vader_ray.errors",
    "RunSummary": "vader_ray.orchestration.runs.summary",
    "Trainer": "vader_ray.training.trainer",
    "TrainerStep": "vader_ray.training.trainer",
    "UserError": "vader_ray.errors",
    "VideoModel": "vader_ray.models",
    "choice": "ray.tune",
    "evaluate": "vader_ray.api",
    "generate": "vader_ray.api",
    "grid_search": "ray.tune",
    "load_adapter": "vader_ray.models",
    "load_recipe": "vader_ray.api",
    "load_reward": "vader_ray.api",
    "loguniform": "ray.tune",
    "packaged_weights": "vader_ray.api",
    "push_to_hub": "vader_ray.orchestration.publishing.push",
    "sweep": "vader_ray.api",
    "train": "vader_ray.api",
    "uniform": "ray.tune",
}
"""Public name → module that defines it."""

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
