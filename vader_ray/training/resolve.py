"""The names of a recipe: every plugin is found and its options are checked, before any weights are loaded."""

from __future__ import annotations

from pathlib import Path

from vader_ray import metrics, models, rewards
from vader_ray.alignment import algorithms
from vader_ray.config import ExperimentConfig
from vader_ray.training.guard import check_guard
from vader_ray.training.optimizer import check_package


def resolve_names(config: ExperimentConfig, folder: Path | None = None) -> ExperimentConfig:
    """Resolve every name of the recipe and check the options of every plugin; load no weights.

    ``model.family: auto`` becomes the family of the weights' pipeline.

    Paths in these options become absolute; a relative one starts at ``folder`` (the recipe's).

    Raises:
        UserError: unknown algorithm, family, scheduler, reward, metric or option, a path that does not exist,
            a guard or an algorithm that cannot work with the other settings, or a missing package.
    """
    family = models.find_family(config.model)
    models.check_parallel(family, config.runtime)
    models.check_clips(family, config.model, config.sampling)
    if config.sampling.scheduler is not None:
        models.check_scheduler(config.sampling.scheduler)
    check_guard(config)
    check_package(config.optimizer)
    checked = {
        "model": config.model.model_copy(update={"family": family}),
        "algorithm": algorithms.check(config, folder=folder),
        "rewards": tuple(rewards.check(spec, folder=folder) for spec in config.rewards),
        "eval_rewards": tuple(rewards.check(spec, folder=folder) for spec in config.eval_rewards),
        "eval_metrics": tuple(metrics.check(spec, folder=folder) for spec in config.eval_metrics),
    }
    return config.model_copy(update=checked)
