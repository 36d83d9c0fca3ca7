"""From a recipe to the objects of a run: model, rewards, metrics, conditioning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from vader_ray import metrics, models
from vader_ray.alignment import algorithms
from vader_ray.alignment.base import Algorithm
from vader_ray.alignment.frames import choose_frames, every_frame_rule
from vader_ray.alignment.reward_gradient import RewardTerm
from vader_ray.alignment.rollout import Batching
from vader_ray.config import (
    ExperimentConfig,
    MetricConfig,
    RewardConfig,
    RuntimeConfig,
    SamplingConfig,
    split_image,
)
from vader_ray.errors import UserError, explain_plugin_errors
from vader_ray.metrics import Metric
from vader_ray.prompt_files import check_prompts
from vader_ray.stages import announce
from vader_ray.training.distributed import WorkerGroup
from vader_ray.training.load_reward import load_reward
from vader_ray.training.model_cache import ModelCache, conditioning_key, model_key, plugin_key
from vader_ray.training.pairs import Pair, read_pairs
from vader_ray.training.seeding import derive_seed
from vader_ray.types import RemoteReward, Reward, SamplingModel, Sliceable


@dataclass(frozen=True, slots=True)
class EvalMetric:
    """A metric of the evaluations with its name."""

    name: str
    """Name in the logged metrics, ``eval/NAME``."""
    metric: Metric
    frames: str
    """Rule that chooses the frames that it gets."""

    def names(self) -> list[str]:
        """List the names of its values: its own, or one for each part."""
        return [f"{self.name}/{part}" for part in getattr(self.metric, "parts", ())] or [self.name]


@dataclass(frozen=True)
class Experiment:
    """All objects that one worker needs for a run."""

    model: SamplingModel
    algorithm: Algorithm[Any]
    """The recipe's algorithm."""
    terms: list[RewardTerm]
    """The trained rewards."""
    eval_terms: list[RewardTerm]
    """The rewards of evaluations alone."""
    metrics: list[EvalMetric]
    """The metrics of evaluations."""
    conditioning: Sliceable
    """Conditioning of every prompt of the recipe, encoded once."""
    rows: dict[str, int]
    """Row of each prompt in ``conditioning``."""
    pairs: Sequence[Pair] = ()
    """Given pairs of videos to train on; without them each step samples its videos."""

    @cached_property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.model.adapter_parameters()[0].device

    def condition(self, prompts: Sequence[str]) -> Sliceable:
        """Return the conditioning of some of the recipe's prompts."""
        return self.conditioning[[self.rows[prompt] for prompt in prompts]]

    def trained_networks(self) -> list[nn.Module]:
        """List the trained rewards that have weights in this process."""
        return [term.reward for term in self.terms if isinstance(term.reward, nn.Module)]

    def heldout_networks(self) -> list[nn.Module]:
        """List the rewards and metrics with weights that only evaluations use.

        One that shares a tensor with a trained reward is none of them.
        """
        loaded = (*(term.reward for term in self.eval_terms), *(each.metric for each in self.metrics))
        trained = {id(tensor) for tensor in tensors_of(self.trained_networks())}
        return [
            each
            for each in loaded
            if isinstance(each, nn.Module) and not trained & {id(tensor) for tensor in tensors_of([each])}
        ]

    @contextmanager
    def heldout_on_device(self) -> Iterator[None]:
        """Have the weights that only evaluations use on the device; afterwards they are in host memory.

        On the meta device nothing moves.
        """
        if self.device.type == "meta":
            yield
            return
        networks = self.heldout_networks()
        try:
            for network in networks:
                network.to(self.device)
            yield
        finally:
            for network in networks:
                network.to("cpu")


def tensors_of(networks: Sequence[nn.Module]) -> list[torch.Tensor]:
    """List all parameters and buffers, each once."""
    tensors = {
        id(tensor): tensor for network in networks for tensor in (*network.parameters(), *network.buffers())
    }
    return list(tensors.values())


def build(
    config: ExperimentConfig,
    device: torch.device = torch.device("cpu"),
    remote: Mapping[str, RemoteReward] | None = None,
    cache: ModelCache | None = None,
    group: WorkerGroup = WorkerGroup(),
) -> Experiment:
    """Load model, rewards and metrics, encode every prompt once and free the text encoders' memory.

    Sets the recipe's number of CPU threads for this process. On the meta device nothing has weights, and the
    contracts of rewards and metrics are not checked. With ``runtime.shard``, ``context_parallel`` or
    ``guidance_parallel`` all workers call it together.

    Args:
        remote: by name, the rewards that other processes compute; they are not loaded here.
        cache: this process's cache; a model, conditioning, reward or metric in it is not loaded again.
        group: the workers of the run; if they are fewer than the recipe's, each has the whole model and
            computes whole videos.
    """
    torch.set_num_threads(config.runtime.num_threads)
    runtime = config.runtime
    is_bound = runtime.compile != "none" or runtime.offload_weights or runtime.workers_per_video > 1
    if cache is None or is_bound:  # to the adapter with which a block was compiled or divided
        cache = ModelCache()
    key = model_key(config, device)
    local_rewards = [
        spec for spec in (*config.rewards, *config.eval_rewards) if spec.name not in (remote or {})
    ]
    cache.evict_except(
        [
            key,
            conditioning_key(config, device),
            *(plugin_key(spec, config.sampling, device) for spec in (*local_rewards, *config.all_metrics())),
        ]
    )
    is_kept = key in cache
    model = cache.get_or_load(key, lambda: build_model(config, device, group))
    if is_kept:
        model.add_adapter(config.adapter, derive_seed(config.seed, "adapter"))
    return assemble(config, model, device, remote or {}, cache)


def build_model(
    config: ExperimentConfig, device: torch.device, group: WorkerGroup = WorkerGroup()
) -> SamplingModel:
    """Load the recipe's model with a fresh adapter and its text encoders."""
    runtime = config.runtime
    announce(f"loading the model {config.model.family}")
    assert runtime.activation_checkpointing != "auto", "chosen before a run"
    group = group.of_recipe(runtime)
    is_divided = group.world_size >= runtime.shard > 1 or runtime.offload_weights
    model = models.build(
        config.model,
        config.sampling,
        config.adapter,
        seed=derive_seed(config.seed, "adapter"),
        chunk_size=runtime.decode_chunk_size,
        device=device,
        activation_checkpointing=runtime.activation_checkpointing,
        compile_blocks=runtime.compile == "blocks",
        mesh=group.mesh(min(runtime.shard, group.world_size), device) if is_divided else None,
        offload_weights=runtime.offload_weights,
        video_mesh=group.video_mesh(runtime, device) if group.workers_per_video > 1 else None,
    )
    built: SamplingModel = model
    return built


def batching(runtime: RuntimeConfig) -> Batching:
    """Return the numbers of videos and frames that a worker keeps in memory at once."""
    prefix, micro = runtime.prefix_batch_size, runtime.micro_batch_size
    assert prefix != "auto", "chosen before a run"
    assert micro != "auto"
    return Batching(prefix, micro, runtime.decode_chunk_size, runtime.matmul_precision)


def assemble(
    config: ExperimentConfig,
    model: SamplingModel,
    device: torch.device,
    remote: Mapping[str, RemoteReward],
    cache: ModelCache | None = None,
) -> Experiment:
    """Encode the prompts, free the text encoders, and load rewards and metrics.

    Weights that only evaluations use are then moved to host memory: `Experiment.heldout_on_device`.
    """
    cache = cache or ModelCache()
    algorithm = algorithms.build(config)
    algorithm.check_model(model)
    pairs = () if algorithm.pairs_file is None else read_pairs(algorithm.pairs_file)
    prompts = list(dict.fromkeys((*config.prompts.all_prompts(), *(pair.prompt for pair in pairs))))
    conditioning = cache.get_or_load(conditioning_key(config, device), lambda: _encode_all(model, prompts))
    experiment = Experiment(
        model=model,
        algorithm=algorithm,
        terms=[_term(spec, remote.get(spec.name), config.sampling, device, cache) for spec in config.rewards],
        eval_terms=[
            _term(spec, remote.get(spec.name), config.sampling, device, cache) for spec in config.eval_rewards
        ],
        metrics=[_metric(spec, config.sampling, device, cache) for spec in config.all_metrics()],
        conditioning=conditioning,
        rows={prompt: row for row, prompt in enumerate(prompts)},
        pairs=pairs,
    )
    for network in experiment.trained_networks():
        network.to(device)  # the cache may have it from a run whose evaluations alone used it
    with experiment.heldout_on_device():
        return experiment


def _encode_all(model: SamplingModel, prompts: Sequence[str]) -> Sliceable:
    announce(f"encoding {len(prompts)} prompts")
    conditioning = encode(model, prompts)
    model.free_text_encoders()
    return conditioning


def check_texts(prompts: Sequence[str]) -> None:
    """Check prompts that come from no recipe, before a model is loaded.

    Raises:
        UserError: there is none, or one is not text, is empty or too long.
    """
    if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise UserError(f"prompts={str(prompts)[:100]}: give one text or more")
    try:
        check_prompts(prompts)
    except ValueError as error:
        raise UserError(f"prompts: {error}") from None


def encode(model: SamplingModel, prompts: Sequence[str]) -> Sliceable:
    """Encode prompts, each of which may name an image.

    Raises:
        UserError: an image does not exist, or only some prompts name one.
    """
    parts = [split_image(prompt) for prompt in prompts]
    images, texts = [image for image, _ in parts if image is not None], [text for _, text in parts]
    if 0 < len(images) < len(texts):
        raise UserError(
            "prompts: some have an image and some have none, of the training, validation and test prompts "
            "together; give every prompt one, or none"
        )
    if missing := [image for image in images if not image.is_file()]:
        raise UserError(
            f"the image {missing[0]} does not exist; write `path/to/image.png | text` with an existing image"
        )
    return model.encode(texts, images) if images else model.encode(texts)


def _term(
    spec: RewardConfig,
    remote: RemoteReward | None,
    sampling: SamplingConfig,
    device: torch.device,
    cache: ModelCache,
) -> RewardTerm:
    def load() -> Reward:
        announce(f"loading the reward {spec.name}")
        return load_reward(spec, sampling.total_frames(), sampling.height, sampling.width, device)

    reward = remote or cache.get_or_load(plugin_key(spec, sampling, device), load)
    return RewardTerm(spec.name, reward, spec.weight, spec.target, spec.frames, spec.hinge)


def _metric(
    spec: MetricConfig, sampling: SamplingConfig, device: torch.device, cache: ModelCache
) -> EvalMetric:
    metric = cache.get_or_load(
        plugin_key(spec, sampling, device), lambda: _load_metric(spec, sampling, device)
    )
    return EvalMetric(spec.name, metric, spec.frames)


def _load_metric(spec: MetricConfig, sampling: SamplingConfig, device: torch.device) -> Metric:
    """Load a metric and check its contract on random frames, as many as it will get."""
    announce(f"loading the metric {spec.name}")
    metric = metrics.build(spec, device=device)
    if device.type == "meta":
        return metric
    seen = len(choose_frames(every_frame_rule(spec.frames), sampling.total_frames(), torch.Generator()))
    with explain_plugin_errors(f"metric {spec.name!r}"):
        metrics.check_contract(
            metric,
            name=spec.name,
            device=device,
            num_frames=seen,
            height=sampling.height,
            width=sampling.width,
        )
    return metric
