"""A dry run of a recipe: load everything and compute one step's gradient on every worker."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import ray.train
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.config import LoggingConfig
from ray.util.queue import Queue

from vader_ray import config as settings
from vader_ray.config import ExperimentConfig
from vader_ray.errors import RunFailed, UserError
from vader_ray.files import scratch_folder
from vader_ray.imports import fast_imports
from vader_ray.orchestration.clusters import connection
from vader_ray.orchestration.reward_service import pool
from vader_ray.orchestration.reward_service.remote_reward import PooledReward
from vader_ray.orchestration.runs.follow import EndRequest, follow
from vader_ray.orchestration.runs.launch import new_queue, resolve_auto, start_fit
from vader_ray.orchestration.runs.process_group import ProcessGroupConfig
from vader_ray.stages import Stage, announce, announced_to
from vader_ray.training.distributed import WorkerGroup

if TYPE_CHECKING:
    from vader_ray.training.dry_run import StepCheck


class _Job(TypedDict):
    config: dict[str, Any]
    remote_rewards: Mapping[str, PooledReward]
    messages: Queue
    """Queue to the driver: ``("stage", (name, done, total))``."""


@dataclass(frozen=True, slots=True)
class DryRun:
    """Result of a dry run."""

    step: StepCheck
    """Measurements of rank 0."""
    equal_on_all_workers: bool
    """Whether the summed gradient has the same bits on all workers."""


def dry_run(config: ExperimentConfig) -> DryRun:
    """Compute the gradient of one step on all workers.

    Raises:
        UserError: the recipe cannot work; the message comes from the worker that met the problem.
    """
    config = resolve_auto(config)
    with (
        connection.connected(config),
        pool.start_pools(config) as remote_rewards,
        scratch_folder() as storage,
    ):
        messages = new_queue()
        trainer = TorchTrainer(
            _dry_run_worker,
            train_loop_config=_Job(
                config=config.model_dump(mode="json"), remote_rewards=remote_rewards, messages=messages
            ),
            torch_config=ProcessGroupConfig(),
            scaling_config=ScalingConfig(
                num_workers=config.runtime.num_workers, use_gpu=connection.uses_gpu(config.runtime)
            ),
            run_config=RunConfig(
                name="check", storage_path=str(storage), logging_config=LoggingConfig(log_level="ERROR")
            ),
        )
        thread, outcome = start_fit(trainer)
        never = EndRequest("", lambda: False, grace_seconds=0.0)
        if failure := follow(thread, messages, never, on_step=lambda event: None, log=print):
            raise RunFailed(failure.message)
        (ended,) = outcome
        if isinstance(ended, BaseException):
            raise ended
        result = ended.return_value
        announce("stopping Ray")
    if isinstance(result, str):
        raise UserError(result)
    step, digests = result
    return DryRun(step, len(set(digests)) == 1)


def _dry_run_worker(job: _Job) -> str | tuple[StepCheck, list[str]]:
    """Return the measurements and the gradient's digest of every worker, or the message of a `UserError`."""
    with fast_imports():
        from vader_ray.orchestration.runs.worker import train_device
        from vader_ray.training.dry_run import check_step

    context = ray.train.get_context()
    group = WorkerGroup(context.get_world_rank(), context.get_world_size())
    config = settings.validate(job["config"])

    def pass_on(stage: Stage) -> None:
        if group.rank == 0:
            job["messages"].put(("stage", tuple(stage)))

    try:
        with announced_to(pass_on):
            step, gradient = check_step(config, group, train_device(), job["remote_rewards"])
    except UserError as error:
        return str(error)
    return step, group.gather([hashlib.sha256(gradient.numpy().tobytes()).hexdigest()])
