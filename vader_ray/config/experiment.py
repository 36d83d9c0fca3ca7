"""A recipe: its sections, what must fit together, and what decides its result."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from vader_ray.config.sections import (
    AdapterConfig,
    CheckpointConfig,
    EvaluationConfig,
    MachineConfig,
    ModelConfig,
    OptimizerConfig,
    PromptsConfig,
    RewardConfig,
    SamplingConfig,
    Settings,
    TrackingConfig,
)


class ExperimentConfig(Settings):
    """A recipe: all that decides the result of a run, and the number it is known to reach."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = ""
    seed: NonNegativeInt = 0
    num_steps: PositiveInt
    """Optimizer updates."""
    videos_per_step: PositiveInt
    """Videos of one step over all workers."""
    model: ModelConfig
    adapter: AdapterConfig = AdapterConfig()
    prompts: PromptsConfig
    sampling: SamplingConfig
    rewards: tuple[RewardConfig, ...] = Field(min_length=1)
    eval_rewards: tuple[RewardConfig, ...] = ()
    """Scored in every evaluation, never trained: they expose reward hacking."""
    optimizer: OptimizerConfig = OptimizerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    machine: MachineConfig = MachineConfig()
    must_reach: dict[str, float] = Field(default_factory=dict)
    """Measured floor of this recipe: metric of the last evaluation → value."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [reward.name for reward in (*self.rewards, *self.eval_rewards)]
        if self.evaluation.select is not None and self.evaluation.select not in (metrics := self._eval_metrics()):
            raise ValueError(
                f"evaluation.select={self.evaluation.select!r} is never measured; choose one of {', '.join(metrics)}"
            )
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two rewards are called {twice[0]!r}; give one of them another `label`")
        pools = [reward.placement.actor for reward in (*self.rewards, *self.eval_rewards) if reward.placement]
        if twice := sorted({pool for pool in pools if pools.count(pool) > 1}):
            raise ValueError(f"two rewards have placement.actor={twice[0]!r}; a pool holds one reward, so name another")
        if self.videos_per_step % self.machine.num_workers:
            raise ValueError(
                f"videos_per_step={self.videos_per_step} cannot be shared evenly by machine.num_workers="
                f"{self.machine.num_workers}; choose a divisor"
            )
        return self

    def _eval_metrics(self) -> list[str]:
        return ["eval/objective", *(f"eval/reward/{reward.name}" for reward in (*self.rewards, *self.eval_rewards))]

    def selection(self) -> str:
        """The metric by which the best adapter is kept."""
        if self.evaluation.select is not None:
            return self.evaluation.select
        return f"eval/reward/{self.eval_rewards[0].name}" if self.eval_rewards else "eval/objective"

    def identity(self) -> dict[str, Any]:
        """What decides each step, as plain JSON: a run may be continued, or prolonged, only with the same identity."""
        where_and_how_long = {"machine", "tracking", "checkpoint", "num_steps", "must_reach", "description"}
        identity = self.model_dump(mode="json", exclude=where_and_how_long)
        identity["sampling"].pop("replay")  # exact, and `auto` may choose another on another machine
        for reward in (*identity["rewards"], *identity["eval_rewards"]):
            transport = (reward.pop("placement") or {}).get("transport", "float32")
            if transport != "float32":  # the one thing about its place that a result depends on
                reward["transport"] = transport
        return identity
