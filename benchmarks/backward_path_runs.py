"""Measurements for `benchmarks.backward_paths`: training runs, and gradients of a fresh adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from benchmarks.approximations import take_gradient
from benchmarks.endings import denoiser_flops
from benchmarks.training_runs import CPU, Job, load_experiment, measure_training
from vader_ray.alignment.algorithms.vader import accumulate_gradient
from vader_ray.alignment.truncation import draw_plan
from vader_ray.config import ExperimentConfig
from vader_ray.training.experiment import Experiment, batching
from vader_ray.training.model_cache import model_key
from vader_ray.training.seeding import generator
from vader_ray.training.step import make_rollout
from vader_ray.types import TruncationPlan

NUM_DRAWS = 8
"""Draws of a path over which its cost is averaged."""
_FULL_GRADIENTS: dict[str, Tensor] = {}
_FLOPS: dict[str, float] = {}


def measure(job: Job) -> dict[str, Any]:
    """Measure a job."""
    return MEASUREMENTS[job.part](job)


def measure_cost(job: Job) -> dict[str, Any]:
    """Return the mean FLOPs of the denoiser for one video of a training step, recomputation included."""
    config = job.config()
    return {"denoiser_flops": _flops(config, load_experiment(config))}


def measure_gradients(job: Job) -> dict[str, Any]:
    """Compare each video's gradient with that of the full chain.

    ``cosine`` is the mean over videos, ``cosine_of_mean`` that of the mean gradients. ``variance`` is the
    trace of the covariance over videos, divided by the square of the mean gradient, so it depends on no
    factor of the gradient; where the mean is noise alone, it is about the number of videos.
    """
    config = job.config()
    experiment = load_experiment(config)
    own = _gradients(config, experiment, job.num_videos)
    flops, full = _flops(config, experiment), _full_gradients(config, job.num_videos)
    return {
        "cosine": float(torch.cosine_similarity(own, full, dim=1).mean()),
        "cosine_of_mean": float(torch.cosine_similarity(own.mean(dim=0), full.mean(dim=0), dim=0)),
        "variance": float(own.var(dim=0).sum() / own.mean(dim=0).square().sum()),
        "denoiser_flops": flops,
    }


MEASUREMENTS: Mapping[str, Callable[[Job], dict[str, Any]]] = {
    "cost": measure_cost,
    "training": measure_training,
    "hacking": measure_training,
    "gradients": measure_gradients,
}


def _plan(config: ExperimentConfig, experiment: Experiment, draw: int) -> TruncationPlan:
    """Draw the gradient steps as the given training step of a run does."""
    return draw_plan(
        config.sampling,
        generator(config.seed, "truncation", draw),
        lambda: experiment.model.sampling_schedule(experiment.conditioning[:1]),
    )


def _flops(config: ExperimentConfig, experiment: Experiment) -> float:
    """Return the denoiser's FLOPs for one video, a mean over draws of the path."""
    penalty = config.algorithm.options.get("reference_penalty", 0.0)
    plans = [replace(_plan(config, experiment, draw), reference_weight=penalty) for draw in range(NUM_DRAWS)]
    return fmean(_flops_of(plan, config, experiment) for plan in plans)


def _flops_of(plan: TruncationPlan, config: ExperimentConfig, experiment: Experiment) -> float:
    """Return the denoiser's FLOPs for one video, counted once for all schedulers and factors."""
    is_coupled = [rule.coupling > 0 for rule in plan.rules]
    key = (
        f"{config.name} {config.sampling.num_frames} {plan.num_inference_steps} {plan.grad_steps} "
        f"{is_coupled} {plan.base_adjoint} {plan.reward_step} {plan.reference_weight > 0} {plan.num_endings}"
    )
    if key not in _FLOPS:
        _FLOPS[key] = denoiser_flops(config, experiment, plan).of(plan.num_endings)
    return _FLOPS[key]


def _gradients(config: ExperimentConfig, experiment: Experiment, num_videos: int) -> Tensor:
    """Return the gradient of each video, ``videos parameters`` in float64; each has a draw of its own."""
    rows = []
    for video in range(num_videos):
        accumulate_gradient(
            experiment.model,
            experiment.terms,
            make_rollout(config, experiment, [video]),
            _plan(config, experiment, video),
            batching(config.runtime),
            scale=1.0,
        )
        rows.append(take_gradient(experiment).double())
    return torch.stack(rows)


def _full_gradients(config: ExperimentConfig, num_videos: int) -> Tensor:
    """Return the videos' gradients through all denoising steps, computed once for a scheduler."""
    chain = {
        "truncation": "last",
        "truncation_depth": config.sampling.num_inference_steps,
        "truncation_options": {},
        "num_endings": 1,
    }
    config = config.model_copy(update={"sampling": config.sampling.model_copy(update=chain)})
    key = model_key(config, CPU)
    if key not in _FULL_GRADIENTS:
        _FULL_GRADIENTS[key] = _gradients(config, load_experiment(config), num_videos)
    return _FULL_GRADIENTS[key]
