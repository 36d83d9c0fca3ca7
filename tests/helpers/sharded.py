"""What the workers of a sharded model do in tests: train, and differentiate with and without sharding."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from benchmarks.evaluation import moved_bytes
from tests.helpers.families import CASES
from tests.helpers.family_runs import PROMPTS, SEEDS, encode_prompts, load_case
from tests.helpers.tiny import adapter_gradient
from tests.helpers.training import Keeper
from vader_ray.config import ActivationCheckpointing, Precision, override, validate
from vader_ray.models.core.sharding import local_bytes
from vader_ray.training.checkpoint import State
from vader_ray.training.distributed import WorkerGroup
from vader_ray.training.experiment import build
from vader_ray.training.loop import make_optimizer, train
from vader_ray.training.step import train_step
from vader_ray.types import TruncationPlan

CPU = torch.device("cpu")


@dataclass
class Trained:
    """What a worker reports of a run."""

    adapter: list[Tensor]
    metrics: list[dict[str, float]]
    frozen_bytes: int
    """Bytes of the denoiser's frozen weights in this process."""
    is_sharded: bool


def train_sharded(
    group: WorkerGroup, document: dict[str, Any], folder: Path, resume_from: Path | None = None
) -> Trained:
    """Train a recipe; rank 0 keeps the checkpoints."""
    config = validate(document)
    experiment = build(config, CPU, group=group)
    keeper = Keeper(folder)
    train(config, experiment, group=group, on_step=keeper, resume_from=resume_from)
    model: Any = experiment.model
    frozen = [each for each in model.denoiser.parameters() if not each.requires_grad]
    return Trained(
        [each.detach().clone() for each in model.adapter_parameters()],
        [report.metrics for report in keeper.reports],
        local_bytes(frozen),
        all(isinstance(each, DTensor) for each in frozen),
    )


def exchange_steps(group: WorkerGroup, document: dict[str, Any], choices: list[str]) -> list[int]:
    """Return the bytes that this process receives in the second step of a run, for each of some settings."""
    received = []
    for choice in choices:
        config = override(validate(document), [choice])
        experiment = build(config, CPU, group=group)
        optimizer, state = make_optimizer(config, experiment), State()
        workers = group.of_recipe(config.runtime)
        for _ in range(2):
            torch.distributed.barrier()
            before = moved_bytes()["received"]
            train_step(config, experiment, optimizer, workers, state, 0.0)
            torch.distributed.barrier()
        received.append(moved_bytes()["received"] - before)
    return received


def differentiate(  # noqa: PLR0913
    group: WorkerGroup,
    name: str,
    folder: Path,
    images: list[Path],
    precision: Precision,
    recompute: bool,
    checkpointing: ActivationCheckpointing,
    offload: bool,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return embeddings, latents and their gradient in the adapter of a family, whole and then sharded."""
    results = []
    for is_sharded in (False, True):
        model = load_case(CASES[name], folder, precision=precision)
        model.apply_memory_optimizations(checkpointing, compile_blocks=False)
        if is_sharded:
            model.shard(group.mesh(group.world_size, CPU), CPU, offload=offload)
        conditioning = encode_prompts(model, images)
        model.free_text_encoders()
        num_steps = model.sampling.num_inference_steps
        plan = TruncationPlan(num_steps, (num_steps - 2, num_steps - 1), recompute=recompute)
        state = model.sample_prefix(conditioning, plan, SEEDS)
        latents = model.sample_with_grad(state, conditioning, plan)
        gradient = adapter_gradient(model, latents.square().mean())
        embeddings = [column.flatten() for column in conditioning.tensors.values() if torch.is_tensor(column)]
        joined = torch.cat(embeddings) if embeddings else torch.zeros(len(PROMPTS))
        results.append((joined, latents.detach(), gradient))
    return results
