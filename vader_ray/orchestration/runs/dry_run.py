"""A dry run of a recipe: load everything, make one step's gradient on every worker, and say what it took."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import ray.train
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device
from ray.train.v2.api.config import LoggingConfig

from vader_ray import config as settings
from vader_ray.config import ConfigError, ExperimentConfig
from vader_ray.orchestration.clusters import connection
from vader_ray.orchestration.reward_service import pool
from vader_ray.orchestration.runs.launch import resolve_auto
from vader_ray.training.distributed import WorkerGroup
from vader_ray.training.dry_run import StepCheck, check_step


@dataclass(frozen=True, slots=True)
class Checked:
    """What the dry run of one step found."""

    step: StepCheck
    equal_on_all_workers: bool


def check(config: ExperimentConfig) -> Checked:
    """Run one step on all workers without changing anything.

    Raises:
        ConfigError: it cannot work; the message of the worker that met the problem.
    """
    config = resolve_auto(config)
    with (
        connection.connected(config),
        pool.serving(config) as pools,
        TemporaryDirectory(prefix="vader_ray_check_") as storage,
    ):
        trainer = TorchTrainer(
            _check_loop,
            train_loop_config={"config": config.model_dump(mode="json"), "served": pools},
            scaling_config=ScalingConfig(
                num_workers=config.runtime.num_workers, use_gpu=connection.uses_gpu(config.runtime)
            ),
            run_config=RunConfig(
                name="check", storage_path=storage, logging_config=LoggingConfig(log_level="ERROR")
            ),
        )
        answer = trainer.fit().return_value
    if isinstance(answer, str):
        raise ConfigError(answer)
    found, digests = answer
    return Checked(found, len(set(digests)) == 1)


def _check_loop(job: dict[str, Any]) -> Any:
    """On rank 0: what the step took and the digest of the gradient on every worker, or the error's message."""
    context = ray.train.get_context()
    group = WorkerGroup(context.get_world_rank(), context.get_world_size())
    device = get_device()
    assert isinstance(device, torch.device)
    try:
        found, gradient = check_step(settings.validate(job["config"]), group, device, job["served"])
    except (ValueError, OSError) as error:
        return str(error)
    return found, group.gather([hashlib.sha256(gradient.numpy().tobytes()).hexdigest()])
