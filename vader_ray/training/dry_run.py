"""Dry run: one training step without its optimizer update, to test that a recipe runs on this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from vader_ray.config import ExperimentConfig
from vader_ray.errors import UserError
from vader_ray.models.core.sharding import local_bytes
from vader_ray.training.checkpoint import State
from vader_ray.training.distributed import WorkerGroup
from vader_ray.training.experiment import Experiment, batching, build
from vader_ray.training.loop import peak_gib
from vader_ray.training.step import make_rollout, step_context, sum_and_clip
from vader_ray.types import RemoteReward


@dataclass(frozen=True, slots=True)
class StepCheck:
    """Time, memory and results of one step on one worker."""

    num_adapter_parameters: int
    """Number of trained parameters."""
    weights_gib: float
    """Memory of model, rewards and metrics in GiB, after the text encoders were freed."""
    peak_gib: float
    """Peak memory in GiB: of tensors on a GPU; on the CPU of the whole process, libraries included."""
    step_seconds: float
    """Wall-clock seconds of sampling, rewards and backward pass."""
    gradient_norm: float
    """L2 norm of the adapter's gradient over all workers."""
    scores: dict[str, float]
    """Mean score of each trained reward over this worker's videos."""


def check_step(
    config: ExperimentConfig,
    group: WorkerGroup,
    device: torch.device,
    remote: Mapping[str, RemoteReward] | None = None,
) -> tuple[StepCheck, Tensor]:
    """Take one step; return its time and memory, and the adapter's gradient over all workers, on the CPU.

    Raises:
        UserError: something cannot be loaded, or the gradient is zero or not finite.
    """
    experiment = build(config, device, remote, group=group)
    group = group.of_recipe(config.runtime)
    rollout = make_rollout(
        config, experiment, list(group.share(config.videos_per_step, experiment.algorithm.group_size))
    )
    started = time.monotonic()
    update = next(
        experiment.algorithm.updates(
            experiment.model,
            experiment.terms,
            rollout,
            batching(config.runtime),
            step_context(config, group, State()),
        )
    )
    norm = sum_and_clip(experiment.model.adapter_parameters(), group, float("inf"))
    seconds = time.monotonic() - started
    if not 0 < norm < float("inf"):
        raise UserError(
            f"the adapter's gradient is {norm} for {len(update.grad_steps)} gradient steps "
            f"({update.grad_steps}); "
            "choose other gradient steps (sampling.truncation, truncation_depth), adapt other layers "
            "(adapter.target_modules), raise the reward's hinge if all scores are above it, or correct the "
            "reward"
        )
    parameters = experiment.model.adapter_parameters()
    gradient = torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
    names = update.outputs[0].scores if update.outputs else ()
    found = StepCheck(
        num_adapter_parameters=sum(parameter.numel() for parameter in parameters),
        weights_gib=_weights_bytes(experiment) / 2**30,
        peak_gib=peak_gib(device),
        step_seconds=seconds,
        gradient_norm=norm,
        scores={
            name: fmean(value for part in update.outputs for value in part.scores[name].tolist())
            for name in names
        },
    )
    return found, gradient.cpu()


def _weights_bytes(experiment: Experiment) -> int:
    modules = [*experiment.model.modules(), *experiment.trained_networks()]
    return local_bytes(parameter for module in modules for parameter in module.parameters())
