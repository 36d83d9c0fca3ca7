"""Estimate the memory and work of a recipe's training step, without a GPU and without weights.

The recipe's own step runs on the meta device: the same pipeline loop, staged gradient, decoder and rewards as
in training, on tensors that have sizes and no values (`vader_ray.preflight.meta_device`), while
`PeakMemoryTracker` and `OpCounter` record them. So the estimate follows every change of the code. Denoising
steps of equal cost run once and are multiplied. Not included: scratch memory within kernels, the allocator's
fragmentation and the memory of GPU libraries, for which `vader_ray.preflight.devices` reserves memory.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from vader_ray.alignment import algorithms
from vader_ray.config import ExperimentConfig
from vader_ray.errors import UserError
from vader_ray.preflight.divided_weights import counted_gathers
from vader_ray.preflight.meta_device import META, meta_device_mode
from vader_ray.preflight.remote_rewards import counted_rewards
from vader_ray.preflight.repeated_rewards import with_repeated_rewards
from vader_ray.preflight.short_recipe import shortened
from vader_ray.preflight.simulated_workers import workers_of_a_video
from vader_ray.preflight.step_counts import StepCount, StepEstimate
from vader_ray.preflight.trackers import OpCounter, OpRecord, PeakMemoryTracker
from vader_ray.training.checkpoint import State
from vader_ray.training.distributed import WorkerGroup
from vader_ray.training.evaluation import evaluate
from vader_ray.training.experiment import (
    Experiment,
    assemble,
    batching,
    build_model,
    encode,
    tensors_of,
)
from vader_ray.training.step import make_rollout, step_context
from vader_ray.types import GatheredPart, SamplingModel, TruncationPlan

DEPTHS = (2, 3)
"""Truncation depths from which larger ones are extrapolated: each further gradient step costs the same."""
SMALLEST_8BIT, BLOCK_8BIT = 4096, 256
"""bitsandbytes keeps smaller tensors in float32, and one float32 scale for each block of values."""


def estimate_step(config: ExperimentConfig) -> StepEstimate:
    """Estimate memory and work of one worker in one step.

    Raises:
        UserError: as `count_step`.
    """
    return count_step(config).estimate(config.runtime)


def count_step(config: ExperimentConfig) -> StepCount:
    """Count memory and work of one worker in one step; ``runtime.shard`` and ``offload_weights`` are ignored.

    ``sampling.prefix_cache``, ``sampling.guidance_interval`` and ``runtime.compile``, which save time, are
    ignored, too; a random truncation depth is counted at its largest value.

    Raises:
        UserError: the algorithm has no gradient steps, or a configuration file of the model or of a reward
            is missing; the message names the command that downloads it.
    """
    if not algorithms.resolve(config.algorithm.name).uses_gradient_steps:
        raise UserError(
            f"algorithm.name={config.algorithm.name}: only algorithms with gradient steps are estimated; "
            "set every setting that is auto"
        )
    depth = config.sampling.max_grad_steps()
    if depth <= DEPTHS[1]:
        return _count(config, depth)
    shallow, deep = (_count(config, each) for each in DEPTHS)
    return _extrapolate(shallow, deep, (depth - DEPTHS[1]) // (DEPTHS[1] - DEPTHS[0]))


def _extrapolate(shallow: StepCount, deep: StepCount, times: int) -> StepCount:
    """Extrapolate linearly: ``deep + times · (deep − shallow)``."""

    def linear(before: int, after: int) -> int:
        return after + times * (after - before)

    return replace(
        deep,
        step_bytes=linear(shallow.step_bytes, deep.step_bytes),
        host_bytes=linear(shallow.host_bytes, deep.host_bytes),
        cache_traffic=linear(shallow.cache_traffic, deep.cache_traffic),
        activation_traffic=linear(shallow.activation_traffic, deep.activation_traffic),
        gathers={
            part: linear(before, after)
            for (part, after), before in zip(deep.gathers.items(), shallow.gathers.values(), strict=True)
        },
        operations={
            operation: max(0, linear(shallow.operations.get(operation, 0), deep.operations.get(operation, 0)))
            for operation in shallow.operations.keys() | deep.operations.keys()
        },
    )


def _count(config: ExperimentConfig, depth: int) -> StepCount:
    """Run loading, one step and one evaluation on the meta device, with ``depth`` gradient steps."""
    num_videos = config.videos_per_step // config.runtime.num_video_groups
    size = batching(config.runtime)
    num_run = min(num_videos, max(size.prefix, size.micro))  # further batches cost the same
    with (
        shortened(config, depth) as short,
        workers_of_a_video(config.runtime) as group,
        without_garbage_collection(),
        meta_device_mode() as host,
    ):
        model = build_model(short, META, group)
        whole_model, loaded = num_bytes(model.modules()), model.sharded_networks()
        with PeakMemoryTracker(META.type) as encoding:
            rows = encode(model, short.prompts.train)
        conditioning = encoding.now * len(config.prompts.all_prompts()) // len(rows)
        remote = counted_rewards(config)
        loaded_experiment = assemble(short, model, META, remote)
        heldout = num_bytes(loaded_experiment.heldout_networks())
        experiment = with_repeated_rewards(loaded_experiment)
        adapter = num_bytes([nn.ParameterList(model.adapter_parameters())])
        gradients = adapter if num_run < num_videos else 0  # of the batches before the one that runs
        networks = model.sharded_networks()
        parts = [part for network in networks for part in network.parts()]
        _set_gradients(model, filled=bool(gradients))
        moved = host.moved
        with (
            PeakMemoryTracker(META.type) as step,
            OpCounter(META.type) as work,
            counted_gathers(parts) as gathers,
        ):
            _run_step(short, experiment, num_run)
        calls, host_bytes, moved = model.denoiser_calls, host.peak, host.moved - moved
        frames = sum(reward.num_bytes for reward in remote.values())
        num_steps, num_steps_run = config.sampling.num_inference_steps, short.sampling.num_inference_steps
        skipped, repeated = num_steps - num_steps_run, (config.sampling.num_endings - 1) * depth
        skipped_in_all = skipped * config.sampling.num_clips
        one_step = _one_denoising_step(short, experiment, num_run, parts) if skipped else _Work()
        _set_gradients(model, filled=True)
        with PeakMemoryTracker(META.type) as evaluation:
            evaluate(short, experiment, WorkerGroup())

    def in_a_step(run: int, skipped_step: int = 0) -> int:
        return (run + skipped_in_all * skipped_step) * num_videos // num_run

    return StepCount(
        loaded=loaded,
        networks=networks,
        gathers={
            part: in_a_step(gathers[index], one_step.gathers[index]) for index, part in enumerate(parts)
        },
        whole_bytes=whole_model,
        encoding_bytes=encoding.peak,
        weights_bytes=num_bytes([*model.modules(), *experiment.trained_networks()]),
        state_bytes=conditioning + gradients + optimizer_bytes(config, model),
        step_bytes=step.peak,
        evaluation_bytes=adapter - gradients + heldout + evaluation.peak,
        host_bytes=host_bytes + heldout,
        cache_traffic=in_a_step(moved),
        activation_traffic=in_a_step(work.received, one_step.received),
        frames_traffic=in_a_step(frames),
        num_adapter_parameters=sum(each.numel() for each in model.adapter_parameters()),
        operations={
            operation: in_a_step(work.operations[operation], one_step.operations[operation])
            for operation in work.operations.keys() | one_step.operations.keys()
        },
        denoiser_calls=calls * num_videos * (num_steps + repeated) // (num_run * (num_steps_run + repeated)),
    )


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Switch off cyclic garbage collection, which frees tensors at random times and changes the peak."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _run_step(config: ExperimentConfig, experiment: Experiment, num_videos: int) -> None:
    """Run the algorithm's updates on some videos, without the optimizer."""
    rollout = make_rollout(config, experiment, range(num_videos))
    context = step_context(config, WorkerGroup(), State())
    for _ in experiment.algorithm.updates(
        experiment.model, experiment.terms, rollout, batching(config.runtime), context
    ):
        continue


@dataclass(frozen=True, slots=True)
class _Work:
    """Kernel calls, bytes received from other workers, and gathers of each part by its index."""

    operations: Counter[OpRecord] = field(default_factory=Counter[OpRecord])
    received: int = 0
    gathers: Counter[int] = field(default_factory=Counter[int])


def _one_denoising_step(
    config: ExperimentConfig, experiment: Experiment, num_videos: int, parts: Sequence[GatheredPart]
) -> _Work:
    """Count one denoising step without gradient: two steps less one."""
    size, found = batching(config.runtime).prefix, list[_Work]()
    for num_steps in (1, 2):
        plan = TruncationPlan(config.sampling.num_inference_steps, grad_steps=(num_steps,))
        with OpCounter(META.type) as work, counted_gathers(parts) as gathers:
            for start in range(0, num_videos, size):
                rollout = make_rollout(config, experiment, range(start, min(start + size, num_videos)))
                experiment.model.sample_prefix(rollout.conditioning, plan, rollout.seeds)
        found.append(_Work(work.operations, work.received, gathers))
    one, two = found
    return _Work(two.operations - one.operations, two.received - one.received, two.gathers - one.gathers)


def _set_gradients(model: SamplingModel, *, filled: bool) -> None:
    for parameter in model.adapter_parameters():
        parameter.grad = torch.zeros_like(parameter) if filled else None


def num_bytes(networks: Sequence[nn.Module]) -> int:
    """Return the bytes of all parameters and buffers, each counted once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(networks))


def optimizer_bytes(config: ExperimentConfig, model: SamplingModel) -> int:
    """Return the bytes of the optimizer's two running averages, and of the average of the weights."""
    tensors, settings = model.adapter_parameters(), config.optimizer
    averages = sum(
        2 * (each.numel() + 4 * -(-each.numel() // BLOCK_8BIT))
        if settings.name == "adamw8bit" and each.numel() >= SMALLEST_8BIT
        else 2 * each.numel() * each.element_size()
        for each in tensors
    )
    return averages + num_bytes([nn.ParameterList(tensors)]) * bool(settings.ema_decay)
