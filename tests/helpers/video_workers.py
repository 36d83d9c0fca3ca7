"""What the workers of a video do in tests: train, and differentiate alone and together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, distributed

from tests.helpers.families import CASES
from tests.helpers.family_runs import SEEDS, encode_prompts, load_case
from tests.helpers.sharded import CPU
from tests.helpers.tiny import adapter_gradient
from vader_ray.config import ActivationCheckpointing, RuntimeConfig, validate
from vader_ray.preflight.trackers import PeakMemoryTracker
from vader_ray.training.checkpoint import State
from vader_ray.training.distributed import WorkerGroup
from vader_ray.training.experiment import batching, build
from vader_ray.training.step import make_rollout, step_context
from vader_ray.types import TruncationPlan

NETWORKS = {"animatediff": ("unet", "text_encoder")}
"""Networks that are trained, by case; by default the denoisers."""


def differentiate_together(
    group: WorkerGroup,
    name: str,
    folder: Path,
    images: list[Path],
    settings: dict[str, Any],
    recompute: bool,
    checkpointing: ActivationCheckpointing,
) -> list[Tensor]:
    """Return latents and gradient of one worker, then those of all together."""
    found, case = list[Tensor](), CASES[name]
    tall = {"height": 2 * case.sampling["height"]}  # so that the number of tokens is even
    case = replace(case, sampling=case.sampling | tall)
    for is_divided in (False, True):
        model = load_case(case, folder, networks=NETWORKS.get(name))
        for network in (model.denoisers() | model.adapted_networks()).values():
            network.double()
        model.apply_memory_optimizations(checkpointing, compile_blocks=False)
        if is_divided:
            runtime = RuntimeConfig(num_workers=group.world_size, **settings)
            model.compute_with(group.of_recipe(runtime).video_mesh(runtime, CPU))
        conditioning = encode_prompts(model, images)
        num_steps = model.sampling.num_inference_steps
        penalty = 0.0 if model.trains_text else 0.1
        plan = TruncationPlan(
            num_steps, (num_steps - 2, num_steps - 1), recompute=recompute, reference_weight=penalty
        )
        state = model.sample_prefix(conditioning, plan, SEEDS)
        latents = model.sample_with_grad(state, conditioning, plan)
        gradient = adapter_gradient(model, latents.square().mean())
        if is_divided:
            distributed.all_reduce(gradient)
        found += [latents.detach(), gradient]
    return found


def peak_of_a_step(group: WorkerGroup, document: dict[str, Any]) -> int:
    """Return the bytes of tensors at the peak of a training step, without those before it."""
    config = validate(document)
    experiment = build(config, CPU, group=group)
    rollout = make_rollout(config, experiment, range(config.videos_per_step))
    context = step_context(config, group, State())
    with PeakMemoryTracker() as meter:
        next(
            experiment.algorithm.updates(
                experiment.model, experiment.terms, rollout, batching(config.runtime), context
            )
        )
    return meter.peak
