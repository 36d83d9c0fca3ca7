"""Estimate the memory and work of a recipe's training step, without a GPU and without weights.

The recipe's own step runs on the meta device: the same pipeline loop, staged gradient, decoder and rewards as
in training, on tensors that have sizes and no values (`vader_ray.preflight.meta_device`), while
`PeakMemoryTracker` and `OpCounter` record them. So the estimate follows every change of the code. Denoising
steps of equal cost run once and are multiplied. Not included: scratch memory within kernels, the allocator's
fragmentation and the memory of GPU libraries, for which `vader_ray.preflight.devices` reserves memory.
"""

from __future__ import annotations

import gc
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from vader_ray import rewards
from vader_ray.alignment import algorithms
from vader_ray.config import ExperimentConfig, SamplingConfig, split_image
from vader_ray.errors import UserError
from vader_ray.preflight.divided_weights import divide
from vader_ray.preflight.meta_device import META, meta_device_mode
from vader_ray.preflight.simulated_workers import workers_of_a_video
from vader_ray.preflight.trackers import OpCounter, OpRecord, PeakMemoryTracker
from vader_ray.training.checkpoint import State
from vader_ray.training.distributed import WorkerGroup
from vader_ray.training.evaluation import evaluate
from vader_ray.training.experiment import Experiment, assemble, batching, build_model, encode
from vader_ray.training.step import make_rollout, step_context
from vader_ray.types import Frames, Granularity, RemoteReward, SamplingModel, Scores, TruncationPlan

DEPTHS = (2, 3)
"""Truncation depths from which larger ones are extrapolated: each further gradient step costs the same."""
SMALLEST_8BIT, BLOCK_8BIT = 4096, 256
"""bitsandbytes keeps smaller tensors in float32, and one float32 scale for each block of values."""
_NUM_PROMPTS = 8
"""Number of prompts that are encoded in the estimate; a text encoder's batch is never larger."""


@dataclass(frozen=True, slots=True)
class StepEstimate:
    """Memory and work of one worker. Bytes are bytes of its device unless stated otherwise."""

    load_bytes: int
    """Peak while loading: the whole model with text encoders, and the encoding of prompts."""
    weights_bytes: int
    """Weights of model, rewards and metrics during training."""
    state_bytes: int
    """Conditioning of every prompt, gradients and optimizer state of the adapter."""
    step_bytes: int
    """Peak of a training step, without weights and state."""
    evaluation_bytes: int
    """Peak of an evaluation, without weights and state."""
    host_bytes: int
    """Peak of tensors in host memory: a decoder's cache, weights that wait there, and a whole model that is
    loaded to be divided."""
    operations: Mapping[OpRecord, int]
    """Number of calls of each kernel in one step, over all videos of this worker."""
    denoiser_calls: int
    """Forward passes of the denoiser in one step, per video and guidance branch, without recomputations."""

    @property
    def peak_bytes(self) -> int:
        """Peak of the device's memory over the whole run."""
        return max(
            self.load_bytes,
            self.weights_bytes + self.state_bytes + max(self.step_bytes, self.evaluation_bytes),
        )

    @property
    def flops(self) -> int:
        """Floating-point operations of one step, recomputations included."""
        return sum(operation.flops * times for operation, times in self.operations.items())


def estimate_step(config: ExperimentConfig) -> StepEstimate:
    """Estimate memory and work of one worker in one step.

    ``sampling.prefix_cache`` and ``runtime.compile``, which save time, are ignored; a random truncation depth
    is estimated at its largest value.

    Raises:
        UserError: the algorithm has no gradient steps, or a configuration file of the model or of a reward
            is missing; the message names the command that downloads it.
    """
    if not algorithms.resolve(config.algorithm.name).uses_gradient_steps:
        raise UserError(
            f"algorithm.name={config.algorithm.name}: only algorithms with gradient steps are estimated; "
            "set every setting that is auto"
        )
    depth = config.sampling.truncation_depth
    if depth <= DEPTHS[1]:
        return _estimate(config, depth)
    shallow, deep = (_estimate(config, each) for each in DEPTHS)
    return _extrapolate(shallow, deep, (depth - DEPTHS[1]) // (DEPTHS[1] - DEPTHS[0]))


def _extrapolate(shallow: StepEstimate, deep: StepEstimate, times: int) -> StepEstimate:
    """Extrapolate linearly: ``deep + times · (deep − shallow)``."""

    def linear(before: int, after: int) -> int:
        return after + times * (after - before)

    return replace(
        deep,
        step_bytes=linear(shallow.step_bytes, deep.step_bytes),
        host_bytes=linear(shallow.host_bytes, deep.host_bytes),
        operations={
            operation: max(0, linear(shallow.operations.get(operation, 0), deep.operations.get(operation, 0)))
            for operation in shallow.operations.keys() | deep.operations.keys()
        },
    )


def _estimate(config: ExperimentConfig, depth: int) -> StepEstimate:
    """Run loading, one step and one evaluation on the meta device, with ``depth`` gradient steps."""
    num_videos = config.videos_per_step // config.runtime.num_video_groups
    size = batching(config.runtime)
    num_run = min(num_videos, max(size.prefix, size.micro))  # further batches cost the same
    with (
        _shortened(config, depth) as short,
        workers_of_a_video(config.runtime) as group,
        _without_garbage_collection(),
        meta_device_mode() as host,
    ):
        model = build_model(short, META, group)
        whole_model, loading = num_bytes(model.modules()), divide(config.runtime, model.sharded_networks())
        with PeakMemoryTracker(META.type) as encoding:
            rows = encode(model, short.prompts.train)
        conditioning = encoding.now * len({*config.prompts.train, *config.prompts.heldout}) // len(rows)
        experiment = assemble(short, model, META, _remote_rewards(config))
        adapter = num_bytes([nn.ParameterList(model.adapter_parameters())])
        gradients = adapter if num_run < num_videos else 0  # of the batches before the one that runs
        divided = divide(config.runtime, model.sharded_networks())
        _set_gradients(model, filled=bool(gradients))
        with PeakMemoryTracker(META.type) as step, OpCounter(META.type) as work:
            _run_step(short, experiment, num_run)
        calls, host_bytes = model.denoiser_calls, host.peak
        num_steps, num_steps_run = config.sampling.num_inference_steps, short.sampling.num_inference_steps
        skipped, repeated = num_steps - num_steps_run, (config.sampling.num_endings - 1) * depth
        one_step = _one_denoising_step(short, experiment, num_run) if skipped else Counter[OpRecord]()
        _set_gradients(model, filled=True)
        with PeakMemoryTracker(META.type) as evaluation:
            evaluate(short, experiment, WorkerGroup())
    return StepEstimate(
        load_bytes=whole_model - loading.saved + loading.gathered + encoding.peak,
        weights_bytes=num_bytes([*model.modules(), *plugin_networks(experiment)]) - divided.saved,
        state_bytes=conditioning + gradients + optimizer_bytes(config, model),
        step_bytes=step.peak + divided.gathered,
        evaluation_bytes=adapter - gradients + evaluation.peak + divided.gathered,
        host_bytes=max(host_bytes + divided.host, whole_model if loading.saved else 0),
        operations={
            operation: (work.operations[operation] + skipped * one_step[operation]) * num_videos // num_run
            for operation in work.operations.keys() | one_step.keys()
        },
        denoiser_calls=calls * num_videos * (num_steps + repeated) // (num_run * (num_steps_run + repeated)),
    )


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Switch off cyclic garbage collection, which frees tensors at random times and changes the peak."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def _shortened(config: ExperimentConfig, depth: int) -> Iterator[ExperimentConfig]:
    """Shorten the recipe: few denoising steps, few prompts with blank images, a small evaluation."""
    with tempfile.TemporaryDirectory(prefix="vader_ray_blank_") as folder:
        image = Path(folder) / "blank.png"
        Image.new("RGB", (config.sampling.width, config.sampling.height)).save(image)
        texts = [split_image(prompt)[1] for prompt in config.prompts.train][:_NUM_PROMPTS]
        heldout = [split_image(prompt)[1] for prompt in config.prompts.heldout][:_NUM_PROMPTS]
        prompts = {
            "train": tuple(f"{image} | {text}" for text in texts),
            "heldout": tuple(f"{image} | {text}" for text in heldout),
        }
        num_videos = max(2, batching(config.runtime).prefix)
        evaluation = config.evaluation.model_copy(update={"num_videos": num_videos, "num_shown": 1})
        yield config.model_copy(
            update={
                "prompts": config.prompts.model_copy(update=prompts),
                "sampling": _short_sampling(config.sampling, depth),
                "evaluation": evaluation,
                "runtime": config.runtime.model_copy(
                    update={
                        "num_workers": config.runtime.workers_per_video,
                        "compile": "none",
                        "shard": 1,
                        "offload_weights": False,
                    }
                ),
            }
        )


def _short_sampling(sampling: SamplingConfig, depth: int) -> SamplingConfig:
    """Keep ``depth`` gradient steps, and at most two of the other denoising steps on either side."""
    assert sampling.recompute != "auto", "chosen before an estimate"
    num_steps = sampling.num_inference_steps
    changes: dict[str, object] = {"truncation_depth": depth, "prefix_cache": "none"}
    if sampling.truncation == "uniform":
        changes["num_inference_steps"] = min(num_steps, 2 * depth + 1)
        return sampling.model_copy(update=changes)
    is_window = sampling.truncation == "window"
    before = sampling.window_start if is_window else num_steps - depth
    after = num_steps - before - depth if is_window else 0
    start, rest = min(before, 2), min(max(after, 0), 2)
    changes |= {"truncation": "window", "window_start": start, "num_inference_steps": start + depth + rest}
    return sampling.model_copy(update=changes)


def _run_step(config: ExperimentConfig, experiment: Experiment, num_videos: int) -> None:
    """Run the algorithm's updates on some videos, without the optimizer."""
    rollout = make_rollout(config, experiment, range(num_videos))
    context = step_context(config, WorkerGroup(), State())
    for _ in experiment.algorithm.updates(
        experiment.model, experiment.terms, rollout, batching(config.runtime), context
    ):
        continue


def _one_denoising_step(
    config: ExperimentConfig, experiment: Experiment, num_videos: int
) -> Counter[OpRecord]:
    """Operations of one denoising step without gradient: those of two steps less those of one."""
    size, found = batching(config.runtime).prefix, list[Counter[OpRecord]]()
    for num_steps in (1, 2):
        plan = TruncationPlan(config.sampling.num_inference_steps, grad_steps=(num_steps,))
        with OpCounter(META.type) as work:
            for start in range(0, num_videos, size):
                rollout = make_rollout(config, experiment, range(start, min(start + size, num_videos)))
                experiment.model.sample_prefix(rollout.conditioning, plan, rollout.seeds)
        found.append(work.operations)
    return found[1] - found[0]


def _set_gradients(model: SamplingModel, *, filled: bool) -> None:
    for parameter in model.adapter_parameters():
        parameter.grad = torch.zeros_like(parameter) if filled else None


def num_bytes(networks: Sequence[nn.Module]) -> int:
    """Return the bytes of all parameters and buffers, each counted once."""
    tensors = {
        id(tensor): tensor for network in networks for tensor in (*network.parameters(), *network.buffers())
    }
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


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


def plugin_networks(experiment: Experiment) -> list[nn.Module]:
    """Return the rewards and metrics that have weights."""
    loaded: list[object] = [term.reward for term in (*experiment.terms, *experiment.eval_terms)]
    loaded += [each.metric for each in experiment.metrics]
    return [each for each in loaded if isinstance(each, nn.Module)]


@dataclass(frozen=True, slots=True)
class _ZeroFuture:
    """The result of a reward that takes no memory here: zeros."""

    frames: Frames

    def result(self) -> Scores:
        return self.frames.new_zeros(len(self.frames))


@dataclass(frozen=True, slots=True)
class _ZeroGradientFuture:
    frames: Frames

    def result(self) -> tuple[Scores, Frames]:
        return self.frames.new_zeros(len(self.frames)), torch.zeros_like(self.frames)


@dataclass(slots=True)
class _RemoteReward:
    """A remote reward: the estimate includes the frames that are sent and the gradient that is received."""

    granularity: Granularity
    unit: str

    def submit_scores(self, frames: Frames, prompts: Sequence[str], chunk_size: int, /) -> _ZeroFuture:
        return _ZeroFuture(frames)

    def submit_gradient(
        self, frames: Frames, prompts: Sequence[str], chunk_size: int, /
    ) -> _ZeroGradientFuture:
        return _ZeroGradientFuture(frames)


def _remote_rewards(config: ExperimentConfig) -> dict[str, RemoteReward]:
    placed = [spec for spec in (*config.rewards, *config.eval_rewards) if spec.placement is not None]
    kinds = {spec.name: rewards.resolve(spec.reward) for spec in placed}
    return {
        name: _RemoteReward(kind.granularity, kind.unit)  # type: ignore[attr-defined]
        for name, kind in kinds.items()
    }
