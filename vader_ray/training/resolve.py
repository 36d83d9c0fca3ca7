"""The names of a recipe: every plugin is found and its options are checked, before any weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vader_ray import metrics, models, rewards
from vader_ray.alignment import algorithms
from vader_ray.alignment.truncation import check_plan
from vader_ray.config import ExperimentConfig, SamplingConfig
from vader_ray.errors import UserError
from vader_ray.training.guard import check_guard
from vader_ray.training.optimizer import check_package
from vader_ray.training.seeding import generator

_MAX_PLANS = 1000
"""Training steps whose gradient steps are looked at."""


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
    denoisers = models.check_networks(family, config)
    if denoisers and algorithms.resolve(config.algorithm.name).uses_gradient_steps:
        encoders = config.adapter.text_encoders()
        chosen = [name for name in config.adapter.networks or () if name not in encoders]
        check_reached(chosen, denoisers, config.sampling, seed=config.seed, num_steps=config.num_steps)
    return config.model_copy(update=checked)


def check_reached(
    chosen: Sequence[str], denoisers: Sequence[str], sampling: SamplingConfig, *, seed: int, num_steps: int
) -> None:
    """Check that the gradient reaches every denoiser that was chosen for an adapter.

    The gradient steps are functions of the seed and the training step, so those of a run are known.

    Args:
        chosen: names of denoisers.
        denoisers: name of the denoiser of each denoising step, the noisiest first.
        sampling: the choice of the gradient steps.
        seed: of the run.
        num_steps: number of optimizer steps of the run.

    Raises:
        UserError: no gradient step calls one of them.
    """
    missing = list(chosen)
    for step in range(min(num_steps, _MAX_PLANS)):
        plan = check_plan(sampling, generator(seed, "truncation", step))
        reached = {denoisers[each] for each in plan.grad_steps}
        missing = [name for name in missing if name not in reached]
        if not missing:
            return
    own = [step for step, name in enumerate(denoisers) if name == missing[0]]
    steps = f"the denoising steps {own[0]} to {own[-1]} of {len(denoisers)}" if own else "no denoising step"
    raise UserError(
        f"adapter.networks: {missing[0]} computes {steps}, and no gradient step is one of them ("
        f"sampling.truncation={sampling.truncation}, truncation_depth={sampling.truncation_depth}); choose "
        f"gradient steps there, or leave {missing[0]} out"
    )
