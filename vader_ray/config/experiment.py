"""A recipe: its sections, the combinations that are refused, and the settings that decide its result."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Self

from pydantic import Field, model_validator

from vader_ray.config.plugins import (
    DEFAULT_METRICS,
    RESERVED_METRIC_NAMES,
    AlgorithmConfig,
    MetricConfig,
    RewardConfig,
)
from vader_ray.config.sampling import WHOLE_SAMPLING, SamplingConfig
from vader_ray.config.schema import (
    AdapterConfig,
    CheckpointConfig,
    EvaluationConfig,
    GenerationConfig,
    GuardConfig,
    ModelConfig,
    OptimizerConfig,
    PromptsConfig,
    RuntimeConfig,
    TrackingConfig,
)
from vader_ray.config.settings import Count, Seed, Settings, Steps, frames_needed
from vader_ray.errors import did_you_mean

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Names of recipes and of runs, which are names of folders."""
MAX_NAME_LENGTH = 200


class ExperimentConfig(Settings):
    """A recipe: all settings that decide the result of a run, and the metrics that it is known to reach."""

    name: str = Field(pattern=NAME_PATTERN, max_length=MAX_NAME_LENGTH)
    """Name of the recipe, with which the names of its runs begin."""
    description: str = ""
    """One line about the recipe, for lists and MLflow."""
    seed: Seed = 0
    """Seed of every random choice: adapter, prompts, noise, frames, gradient steps."""
    num_steps: Steps
    """Training steps. A step samples ``videos_per_step`` videos and makes one optimizer update, or
    ``algorithm.num_updates``."""
    videos_per_step: Count
    """Videos of one step, over all workers: the batch size, and the number of reward queries of a step."""
    algorithm: AlgorithmConfig = AlgorithmConfig()
    """``{name: vader}``, or a baseline: ``{name: ddpo, …}``, ``{name: dpo, …}``."""
    model: ModelConfig
    """The pretrained model."""
    adapter: AdapterConfig = AdapterConfig()
    """The trained low-rank adapter."""
    prompts: PromptsConfig
    """Prompts of training, validation and test."""
    sampling: SamplingConfig
    """The denoising procedure and its gradient steps."""
    rewards: tuple[RewardConfig, ...] = Field(min_length=1)
    """Rewards that are trained; the objective is their weighted sum."""
    eval_rewards: tuple[RewardConfig, ...] = ()
    """Rewards that are computed in every evaluation and never trained: they expose reward hacking."""
    eval_metrics: tuple[MetricConfig, ...] = ()
    """Metrics of every evaluation besides motion, diversity and distance to base, logged as ``eval/NAME``."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Cadence and size of the evaluations."""
    generation: GenerationConfig = GenerationConfig()
    """Use of a trained adapter by ``vader-ray generate`` and ``vader-ray evaluate``."""
    guard: GuardConfig = GuardConfig()
    """Guard against reward hacking."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Cadence of the checkpoints."""
    tracking: TrackingConfig = TrackingConfig()
    """Destination of the records in MLflow."""
    runtime: RuntimeConfig = RuntimeConfig()
    """Workers, memory and speed."""
    expected_metrics: dict[str, float] = Field(default_factory=dict)
    """Lowest expected value of each metric of the last evaluation (``eval/…``) or of the test (``test/…``),
    compared in the summary of a run."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        select = self.evaluation.select
        if select is not None and select not in (metrics := self.reward_metrics()):
            raise ValueError(
                f"evaluation.select={select!r} is never measured; {did_you_mean(select, metrics)}"
                f"choose one of {', '.join(metrics)}"
            )
        rewards = (*self.rewards, *self.eval_rewards)
        if twice := _repeated(reward.name for reward in rewards):
            raise ValueError(f"two rewards are called {twice!r}; give one of them another `label`")
        if twice := _repeated(metric.name for metric in self.all_metrics()):
            raise ValueError(f"two metrics are called {twice!r}; give one of eval_metrics another `label`")
        if reserved := [metric.name for metric in self.eval_metrics if metric.name in RESERVED_METRIC_NAMES]:
            raise ValueError(
                f"eval_metrics: eval/{reserved[0]} is logged by every evaluation; give the metric another "
                "`label`"
            )
        if twice := _repeated(reward.placement.actor for reward in rewards if reward.placement):
            raise ValueError(
                f"two rewards have placement.actor={twice!r}; a pool holds one reward, so name another"
            )
        for plugin in (*rewards, *self.eval_metrics):
            if (needed := frames_needed(plugin.frames)) > self.sampling.total_frames():
                raise ValueError(
                    f"{plugin.name}: frames={plugin.frames} needs {needed} frames and "
                    f"sampling.{self.sampling.length_given()}; choose earlier frames or longer videos"
                )
        if self.model.quantization and self.runtime.compile == "blocks":
            raise ValueError(
                "runtime.compile=blocks cannot compile layers of "
                f"model.quantization={self.model.quantization}; leave one of the two out"
            )
        self.optimizer.check_steps(self.num_steps)
        if self.videos_per_step % self.runtime.num_video_groups:
            raise ValueError(
                f"videos_per_step={self.videos_per_step} cannot be shared evenly by runtime.num_workers="
                f"{self.runtime.num_workers}{self._in_groups()}; choose a divisor"
            )
        return self

    def _in_groups(self) -> str:
        size = self.runtime.workers_per_video
        return f" in groups of {size} workers" if size > 1 else ""

    @model_validator(mode="after")
    def _heldout_rewards_are_not_shaped(self) -> Self:
        for index, reward in enumerate(self.eval_rewards):
            for name in ("hinge", "dropout"):
                if (value := getattr(reward, name)) != RewardConfig.model_fields[name].default:
                    raise ValueError(
                        f"eval_rewards.{index}.{name}={value:g} has no effect on a reward that is only "
                        "measured; leave it out"
                    )
        return self

    @model_validator(mode="after")
    def _dropout_leaves_a_reward(self) -> Self:
        if len(self.rewards) == 1 and (dropout := self.rewards[0].dropout):
            raise ValueError(
                f"rewards.0.dropout={dropout:g} leaves the reward out of some steps, and it is the only one; "
                "set it to 0, or add another reward"
            )
        return self

    @model_validator(mode="after")
    def _has_blocks_to_recompute(self) -> Self:
        if self.sampling.recompute == "nested" and self.runtime.activation_checkpointing == "none":
            raise ValueError(
                "sampling.recompute=nested recomputes blocks within gradient steps, and runtime."
                "activation_checkpointing=none recomputes no block; set it to block, or recompute=true"
            )
        return self

    @model_validator(mode="after")
    def _can_be_divided(self) -> Self:
        is_divided = self.runtime.shard > 1 or self.runtime.offload_weights
        if is_divided and self.model.quantization:
            raise ValueError(
                f"model.quantization={self.model.quantization} cannot be combined with runtime.shard or "
                "runtime.offload_weights; choose one of them"
            )
        if self.runtime.shard > 1 and self.sampling.prefix_cache.startswith("first_block"):
            raise ValueError(
                f"sampling.prefix_cache={self.sampling.prefix_cache} skips blocks depending on the video, "
                f"and runtime.shard={self.runtime.shard} needs the same ones on all workers of a group; set "
                "sampling.prefix_cache=none"
            )
        return self

    @model_validator(mode="after")
    def _videos_can_be_divided(self) -> Self:
        runtime, sampling = self.runtime, self.sampling
        if runtime.guidance_parallel and sampling.guidance_scale <= 1:
            raise ValueError(
                "runtime.guidance_parallel=True divides the two branches of guidance, and "
                f"sampling.guidance_scale={sampling.guidance_scale:g} has one; set it to False"
            )
        if runtime.guidance_parallel and sampling.guidance_interval != WHOLE_SAMPLING:
            raise ValueError(
                "runtime.guidance_parallel=True gives each branch of guidance to a worker, and "
                f"sampling.guidance_interval={list(sampling.guidance_interval)} leaves one branch out; leave "
                "one of the two out"
            )
        if runtime.workers_per_video > 1 and sampling.prefix_cache != "none":
            raise ValueError(
                f"sampling.prefix_cache={sampling.prefix_cache} skips blocks depending on what a worker "
                "computes, and runtime.context_parallel and guidance_parallel need the same ones on all "
                "workers of a video; set sampling.prefix_cache=none"
            )
        return self

    @model_validator(mode="after")
    def _can_be_continued(self) -> Self:
        if self.sampling.num_clips > 1 and self.runtime.workers_per_video > 1:
            raise ValueError(
                f"sampling.num_clips={self.sampling.num_clips} has a gradient in the image of a clip, which "
                "runtime.context_parallel and guidance_parallel do not add up over workers; set "
                "context_parallel=1 and guidance_parallel=false"
            )
        return self

    def reward_metrics(self) -> list[str]:
        """List the logged names of the objective and of every reward on held-out prompts."""
        rewards = (*self.rewards, *self.eval_rewards)
        return ["eval/objective", *(f"eval/reward/{reward.name}" for reward in rewards)]

    def reward_names(self) -> tuple[str, ...]:
        """Return the names of the trained and held-out rewards, as the recipe writes them in ``reward``."""
        return tuple(reward.reward for reward in (*self.rewards, *self.eval_rewards))

    def all_metrics(self) -> tuple[MetricConfig, ...]:
        """Return the metrics of every evaluation: the default ones and those of the recipe."""
        return (*DEFAULT_METRICS, *self.eval_metrics)

    def guard_metrics(self) -> tuple[str, ...]:
        """Return the metrics that the guard compares."""
        if self.guard.action == "none":
            return ()
        return self.guard.metrics or tuple(f"eval/reward/{reward.name}" for reward in self.eval_rewards[:1])

    def selection_metric(self) -> str:
        """Return the metric by which the best adapter is kept."""
        if self.evaluation.select is not None:
            return self.evaluation.select
        return f"eval/reward/{self.eval_rewards[0].name}" if self.eval_rewards else "eval/objective"

    def fingerprint(self) -> dict[str, Any]:
        """Return the settings that decide each step, as JSON: only a run with equal ones can be continued."""
        without_effect_on_a_step = {
            "runtime",
            "tracking",
            "generation",
            "checkpoint",
            "num_steps",
            "expected_metrics",
            "description",
        }
        identity = self.model_dump(mode="json", exclude=without_effect_on_a_step)
        identity["prompts"].pop("column")  # the prompts that were read from it are here
        identity["prompts"].pop("test")  # by which nothing is chosen
        identity["evaluation"].pop("num_test_videos")
        identity["optimizer"]["schedule_steps"] = self.optimizer.decay_steps(self.num_steps)
        identity["sampling"].pop("recompute")  # exact, and `auto` may choose another on another machine
        for name in ("gradient_precision", "matmul_precision"):  # no other setting of `runtime` rounds
            if (value := getattr(self.runtime, name)) != RuntimeConfig.model_fields[name].default:
                identity[name] = value
        for reward in (*identity["rewards"], *identity["eval_rewards"]):
            transport = (reward.pop("placement") or {}).get("transport", "float32")
            if transport != "float32":  # the only setting of a placement that rounds
                reward["transport"] = transport
        return identity


def _repeated(names: Iterable[str]) -> str | None:
    """The first name, in alphabetical order, that occurs more than once."""
    return next((one for one, other in pairwise(sorted(names)) if one == other), None)
