"""From a recipe to the objects of a run: model, rewards, conditioning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from vader_ray import models, rewards
from vader_ray.alignment.frames import choose_frames
from vader_ray.alignment.reward_gradient import RewardTerm
from vader_ray.alignment.rollout import Batching
from vader_ray.config import (
    DdpoConfig,
    DpoConfig,
    ExperimentConfig,
    RewardConfig,
    RuntimeConfig,
    SamplingConfig,
    split_image,
)
from vader_ray.training.model_cache import ModelCache, conditioning_key, model_key, reward_key
from vader_ray.training.pairs import Pair, read_pairs
from vader_ray.training.seeding import derive_seed
from vader_ray.types import RemoteReward, Reward, SetMeasure, Sliceable, VideoModel


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure of a set of videos, and the frames that it looks at."""

    name: str
    measure: SetMeasure
    frames: str


@dataclass(frozen=True)
class Experiment:
    """All that one worker holds in memory."""

    model: VideoModel
    terms: list[RewardTerm]
    """The trained rewards."""
    eval_terms: list[RewardTerm]
    """The rewards that are only measured."""
    measures: list[Measure]
    """What is measured of the held-out videos as a set."""
    conditioning: Sliceable
    """Of every prompt of the recipe, once."""
    rows: dict[str, int]
    """Prompt → its row of the conditioning."""
    pairs: Sequence[Pair] = ()
    """Given videos to learn preferences from; without them they are made as training goes."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.adapter_parameters()[0].device

    def condition(self, prompts: Sequence[str]) -> Sliceable:
        """The conditioning of some of the recipe's prompts."""
        return self.conditioning[[self.rows[prompt] for prompt in prompts]]


def build(
    config: ExperimentConfig,
    device: torch.device = torch.device("cpu"),
    served: Mapping[str, RemoteReward] | None = None,
    cache: ModelCache | None = None,
) -> Experiment:
    """Load everything, encode every prompt once and give the text encoders' memory back.

    Sets the recipe's number of threads for this process. On the meta device nothing has weights and no reward is tried out.

    Args:
        served: by name, the rewards that other processes compute and that are not loaded here.
        cache: of this process; a model, its conditioning or a reward that lies there is not loaded again.
    """
    torch.set_num_threads(config.runtime.num_threads)
    if (
        cache is None or config.runtime.compile != "none"
    ):  # a compiled block knows the adapter that it was compiled with
        cache = ModelCache()
    key = model_key(config, device)
    rewards_here = [
        spec for spec in (*config.rewards, *config.eval_rewards) if spec.name not in (served or {})
    ]
    cache.evict_except(
        [
            key,
            conditioning_key(config, device),
            *(reward_key(spec, config.sampling, device) for spec in rewards_here),
        ]
    )
    is_kept = key in cache
    model = cache.get_or_load(key, lambda: build_model(config, device))
    if is_kept:
        model.add_adapter(config.adapter, derive_seed(config.seed, "adapter"))
    return assemble(config, model, device, served or {}, cache)


def build_model(config: ExperimentConfig, device: torch.device) -> VideoModel:
    """The recipe's model with a fresh adapter, text encoders included."""
    assert config.runtime.activation_checkpointing != "auto", "chosen before a run"
    model = models.build(
        config.model,
        config.sampling,
        config.adapter,
        seed=derive_seed(config.seed, "adapter"),
        chunk_size=config.runtime.decode_chunk_size,
        device=device,
        activation_checkpointing=config.runtime.activation_checkpointing,
        compile_blocks=config.runtime.compile == "blocks",
    )
    built: VideoModel = model
    return built


def batching(runtime: RuntimeConfig) -> Batching:
    """How many videos and frames this machine holds at once."""
    prefix, micro = runtime.prefix_batch_size, runtime.micro_batch_size
    assert prefix != "auto", "chosen before a run"
    assert micro != "auto"
    return Batching(prefix, micro, runtime.decode_chunk_size)


def assemble(
    config: ExperimentConfig,
    model: VideoModel,
    device: torch.device,
    served: Mapping[str, RemoteReward],
    cache: ModelCache | None = None,
) -> Experiment:
    """The model with its prompts encoded, whose encoders are then dropped, and the rewards."""
    cache = cache or ModelCache()
    if isinstance(config.algorithm, DdpoConfig):
        model.check_densities()
    pairs = (
        read_pairs(config.algorithm.pairs)
        if isinstance(config.algorithm, DpoConfig) and config.algorithm.pairs
        else ()
    )
    prompts = list(
        dict.fromkeys((*config.prompts.train, *config.prompts.heldout, *(pair.prompt for pair in pairs)))
    )
    conditioning = cache.get_or_load(conditioning_key(config, device), lambda: _encode_all(model, prompts))
    return Experiment(
        model=model,
        terms=[_term(spec, served.get(spec.name), config.sampling, device, cache) for spec in config.rewards],
        eval_terms=[
            _term(spec, served.get(spec.name), config.sampling, device, cache)
            for spec in config.eval_rewards
            if not rewards.is_measure(spec.reward)
        ],
        measures=[
            _measure(spec, config.sampling, device, cache)
            for spec in config.eval_rewards
            if rewards.is_measure(spec.reward)
        ],
        conditioning=conditioning,
        rows={prompt: row for row, prompt in enumerate(prompts)},
        pairs=pairs,
    )


def _encode_all(model: VideoModel, prompts: Sequence[str]) -> Sliceable:
    conditioning = encode(model, prompts)
    model.free_text_encoders()
    return conditioning


def encode(model: VideoModel, prompts: Sequence[str]) -> Sliceable:
    """The conditioning of prompts, of which each may name an image.

    Raises:
        ValueError: an image does not exist.
    """
    parts = [split_image(prompt) for prompt in prompts]
    images, texts = [image for image, _ in parts if image is not None], [text for _, text in parts]
    if missing := [image for image in images if not image.is_file()]:
        raise ValueError(
            f"the image {missing[0]} does not exist; write `path/to/image.png | text` with an existing image"
        )
    return model.encode(texts, images) if images else model.encode(texts)


def _term(
    spec: RewardConfig,
    served: RemoteReward | None,
    sampling: SamplingConfig,
    device: torch.device,
    cache: ModelCache,
) -> RewardTerm:
    def load() -> Reward:
        return load_reward(spec, sampling.num_frames, sampling.height, sampling.width, device)

    reward = served or cache.get_or_load(reward_key(spec, sampling, device), load)
    return RewardTerm(spec.name, reward, spec.weight, spec.target, spec.frames)


def load_reward(spec: RewardConfig, num_frames: int, height: int, width: int, device: torch.device) -> Reward:
    """A reward of the recipe, after it has shown on random frames, as many as it will see, that it keeps its contract."""
    reward = rewards.build(spec, device=device)
    if device.type == "meta":
        return reward
    seen = len(choose_frames(spec.frames, num_frames, torch.Generator()))
    shown = 2 if reward.granularity == "frame" else seen
    rewards.check_contract(
        reward, name=spec.name, device=device, num_frames=shown, height=height, width=width
    )
    return reward


def _measure(
    spec: RewardConfig, sampling: SamplingConfig, device: torch.device, cache: ModelCache
) -> Measure:
    measure = cache.get_or_load(
        reward_key(spec, sampling, device), lambda: _load_measure(spec, sampling, device)
    )
    return Measure(spec.name, measure, spec.frames)


def _load_measure(spec: RewardConfig, sampling: SamplingConfig, device: torch.device) -> SetMeasure:
    measure = rewards.build_measure(spec, device=device)
    if device.type != "meta":
        rewards.check_measure(
            measure, name=spec.name, device=device, height=sampling.height, width=sampling.width
        )
    return measure
