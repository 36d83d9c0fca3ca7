"""What a step of a recipe will need, counted without a GPU and without weights.

The recipe's own step runs on paper: the same pipeline loop, staged gradient, decoder and rewards as in training, on tensors
that have sizes and no values (`vader_ray.preflight.meta_device`), while `PeakMemoryTracker` and `OpCounter` count. A count cannot drift from
the code. Denoising steps that cost the same are counted once and multiplied. Not counted: scratch space within kernels, the
allocator's fragmentation and the GPU libraries' own memory, for which `vader_ray.preflight.devices` keeps a reserve.
"""

from __future__ import annotations

import gc
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from vader_ray import rewards
from vader_ray.alignment.algorithms.vader import accumulate_gradient
from vader_ray.config import ExperimentConfig, VaderConfig, split_image
from vader_ray.preflight.meta_device import META, on_paper
from vader_ray.preflight.trackers import OpCounter, OpRecord, PeakMemoryTracker
from vader_ray.training.distributed import WorkerGroup
from vader_ray.training.evaluation import evaluate
from vader_ray.training.experiment import Experiment, assemble, batching, build_model, encode
from vader_ray.training.step import make_rollout
from vader_ray.types import Frames, Granularity, RemoteReward, Scores, TruncationPlan, VideoModel

DEPTHS = (2, 3)
"""Truncation depths from which deeper ones are extrapolated: every further graded denoising step adds the same."""
_NUM_PROMPTS = 8
"""Prompts that stand for all; a text encoder never sees more at once."""


@dataclass(frozen=True, slots=True)
class Count:
    """What one worker needs; bytes are those of its device unless they say otherwise."""

    load_bytes: int
    """At the peak of loading: the whole model, text encoders included, and what encoding prompts takes."""
    weights_bytes: int
    """Model and rewards while training."""
    state_bytes: int
    """Conditioning of every prompt; gradients and optimizer state of the adapter."""
    step_bytes: int
    """What a step adds to these at its peak."""
    evaluation_bytes: int
    """What an evaluation adds at its peak."""
    host_bytes: int
    """In host memory, the caches of the decoder that wait there."""
    operations: Mapping[OpRecord, int]
    """Kernels of one step, all videos of this worker."""
    denoiser_calls: int
    """Of one step, per video and guidance branch, without recomputations."""

    @property
    def peak_bytes(self) -> int:
        """The most of the device's memory that is ever in use."""
        return max(
            self.load_bytes,
            self.weights_bytes + self.state_bytes + max(self.step_bytes, self.evaluation_bytes),
        )

    @property
    def flops(self) -> int:
        """Of one step, recomputations included."""
        return sum(operation.flops * times for operation, times in self.operations.items())


def count(config: ExperimentConfig) -> Count:
    """What every worker of a recipe needs for one step.

    ``sampling.prefix_cache`` and ``runtime.compile``, which save time, are left out; of a random depth the deepest is taken.

    Raises:
        ValueError: another algorithm than VADER, or a configuration file of the model or of a reward is not at hand; says
            what to fetch.
    """
    if config.algorithm.name != "vader":
        raise ValueError(
            f"algorithm.name={config.algorithm.name}: only the step of vader is counted; name every setting yourself"
        )
    depth = config.sampling.truncation_depth
    if depth <= DEPTHS[1]:
        return _count(config, depth)
    shallow, deep = (_count(config, few) for few in DEPTHS)
    return _extrapolated(shallow, deep, (depth - DEPTHS[1]) // (DEPTHS[1] - DEPTHS[0]))


def _extrapolated(shallow: Count, deep: Count, times: int) -> Count:
    """What ``deep`` has more than ``shallow``, so many times more."""
    every = shallow.operations.keys() | deep.operations.keys()
    operations = {
        operation: max(
            0, _grown(shallow.operations.get(operation, 0), deep.operations.get(operation, 0), times)
        )
        for operation in every
    }
    return replace(
        deep,
        step_bytes=_grown(shallow.step_bytes, deep.step_bytes, times),
        host_bytes=_grown(shallow.host_bytes, deep.host_bytes, times),
        operations=operations,
    )


def _grown(before: int, after: int, times: int) -> int:
    return after + times * (after - before)


def _count(config: ExperimentConfig, depth: int) -> Count:
    plan = _short_plan(config, depth)
    num_videos = config.videos_per_step // config.runtime.num_workers
    size = batching(config.runtime)
    shown = min(num_videos, max(size.prefix, size.micro))
    with _on_blank_images(config, plan, shown) as short, _garbage_kept(), on_paper() as host:
        model = build_model(short, META)
        whole_model = num_bytes(model.modules())
        with PeakMemoryTracker(META.type) as encoding:
            rows = encode(model, short.prompts.train)
        conditioning = encoding.now * len({*config.prompts.train, *config.prompts.heldout}) // len(rows)
        experiment = assemble(short, model, META, _elsewhere(config))
        adapter = num_bytes([nn.ParameterList(model.adapter_parameters())])
        earlier = adapter if shown < num_videos else 0  # the gradients of the videos before
        _set_gradients(model, filled=bool(earlier))
        with PeakMemoryTracker(META.type) as live, OpCounter(META.type) as work:
            _step(short, experiment, plan, shown)
        calls, waiting = model.denoiser_calls, host.peak
        more = config.sampling.num_inference_steps - plan.num_inference_steps
        one = _one_denoising_step(short, experiment, plan, shown) if more else Counter[OpRecord]()
        _set_gradients(model, filled=True)
        with PeakMemoryTracker(META.type) as evaluation:
            evaluate(short, experiment, WorkerGroup())
    every = work.operations.keys() | one.keys()
    return Count(
        load_bytes=whole_model + encoding.peak,
        weights_bytes=num_bytes([*model.modules(), *reward_networks(experiment)]),
        state_bytes=conditioning + earlier + 2 * adapter,
        step_bytes=live.peak,
        evaluation_bytes=adapter - earlier + evaluation.peak,
        host_bytes=waiting,
        operations={key: (work.operations[key] + more * one[key]) * num_videos // shown for key in every},
        denoiser_calls=calls
        * num_videos
        * config.sampling.num_inference_steps
        // (shown * plan.num_inference_steps),
    )


@contextmanager
def _garbage_kept() -> Iterator[None]:
    """Python frees cycles at times of its own; within, it does not, so that equal recipes have equal counts."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _short_plan(config: ExperimentConfig, depth: int) -> TruncationPlan:
    """So many graded denoising steps, with at most two without gradient where the recipe has any number of them."""
    sampling = config.sampling
    num_steps = sampling.num_inference_steps
    reference_weight = (
        config.algorithm.reference_penalty if isinstance(config.algorithm, VaderConfig) else 0.0
    )
    assert sampling.recompute != "auto", "chosen before a count"
    if sampling.truncation == "uniform":
        short = min(num_steps, 2 * depth + 1)
        graded = tuple((segment + 1) * short // depth - 1 for segment in range(depth))
        return TruncationPlan(
            short, graded, sampling.backprop_through_input, sampling.recompute, reference_weight
        )
    is_window = sampling.truncation == "window"
    before = sampling.window_start if is_window else num_steps - depth
    after = num_steps - before - depth if is_window else 0
    start, rest = min(before, 2), min(max(after, 0), 2)
    return TruncationPlan(
        start + depth + rest,
        tuple(range(start, start + depth)),
        sampling.backprop_through_input,
        sampling.recompute,
        reference_weight,
    )


@contextmanager
def _on_blank_images(
    config: ExperimentConfig, plan: TruncationPlan, num_videos: int
) -> Iterator[ExperimentConfig]:
    """The recipe with a short sampling, few prompts that each have an image, and a short evaluation."""
    with tempfile.TemporaryDirectory(prefix="vader_ray_blank_") as folder:
        image = Path(folder) / "blank.png"
        Image.new("RGB", (config.sampling.width, config.sampling.height)).save(image)
        texts = [split_image(prompt)[1] for prompt in config.prompts.train][:_NUM_PROMPTS]
        heldout = [split_image(prompt)[1] for prompt in config.prompts.heldout][:_NUM_PROMPTS]
        prompts = {
            "train": tuple(f"{image} | {text}" for text in texts),
            "heldout": tuple(f"{image} | {text}" for text in heldout),
        }
        num_shown = max(2, batching(config.runtime).prefix)
        yield config.model_copy(
            update={
                "prompts": config.prompts.model_copy(update=prompts),
                "sampling": config.sampling.model_copy(
                    update={"num_inference_steps": plan.num_inference_steps, "prefix_cache": "none"}
                ),
                "evaluation": config.evaluation.model_copy(update={"num_videos": num_shown, "num_shown": 1}),
                "runtime": config.runtime.model_copy(update={"compile": "none"}),
            }
        )


def _step(config: ExperimentConfig, experiment: Experiment, plan: TruncationPlan, num_videos: int) -> None:
    rollout = make_rollout(config, experiment, range(num_videos))
    accumulate_gradient(
        experiment.model, experiment.terms, rollout, plan, batching(config.runtime), scale=1.0
    )


def _one_denoising_step(
    config: ExperimentConfig, experiment: Experiment, plan: TruncationPlan, num_videos: int
) -> Counter[OpRecord]:
    """The operations of one step without gradient: what sampling to the third takes more than to the second."""
    size, taken = batching(config.runtime).prefix, list[Counter[OpRecord]]()
    for stop in (1, 2):
        with OpCounter(META.type) as work:
            for start in range(0, num_videos, size):
                rollout = make_rollout(config, experiment, range(start, min(start + size, num_videos)))
                experiment.model.sample_prefix(
                    rollout.conditioning, replace(plan, grad_steps=(stop,)), rollout.seeds
                )
        taken.append(work.operations)
    return taken[1] - taken[0]


def _set_gradients(model: VideoModel, *, filled: bool) -> None:
    for parameter in model.adapter_parameters():
        parameter.grad = torch.zeros_like(parameter) if filled else None


def num_bytes(networks: Sequence[nn.Module]) -> int:
    """Of all parameters and buffers, each once."""
    tensors = {
        id(tensor): tensor for network in networks for tensor in (*network.parameters(), *network.buffers())
    }
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def reward_networks(experiment: Experiment) -> list[nn.Module]:
    """The rewards and metrics that have weights."""
    held = [term.reward for term in (*experiment.terms, *experiment.eval_terms)]
    return [
        each for each in (*held, *(each.metric for each in experiment.metrics)) if isinstance(each, nn.Module)
    ]


@dataclass(slots=True)
class _Elsewhere:
    """A reward that other processes compute: this one only keeps its frames and gets as many numbers back."""

    granularity: Granularity
    unit: str

    def submit_scores(
        self, frames: Frames, prompts: Sequence[str], chunk_size: int, /
    ) -> Callable[[], Scores]:
        return lambda: frames.new_zeros(len(frames))

    def submit_gradient(
        self, frames: Frames, prompts: Sequence[str], chunk_size: int, /
    ) -> Callable[[], tuple[Scores, Frames]]:
        return lambda: (frames.new_zeros(len(frames)), torch.zeros_like(frames))


def _elsewhere(config: ExperimentConfig) -> dict[str, RemoteReward]:
    placed = [spec for spec in (*config.rewards, *config.eval_rewards) if spec.placement is not None]
    kinds = {spec.name: rewards.resolve(spec.reward) for spec in placed}
    return {name: _Elsewhere(kind.granularity, kind.unit) for name, kind in kinds.items()}  # type: ignore[attr-defined]
