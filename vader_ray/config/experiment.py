"""A recipe: its sections, what must fit together, and what decides its result."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from vader_ray.config.schema import (
    AdapterConfig,
    AlgorithmConfig,
    CheckpointConfig,
    EvaluationConfig,
    GuardConfig,
    MachineConfig,
    ModelConfig,
    OptimizerConfig,
    PromptsConfig,
    RewardConfig,
    SamplingConfig,
    Settings,
    TrackingConfig,
    VaderConfig,
)


class ExperimentConfig(Settings):
    """A recipe: all that decides the result of a run, and the number it is known to reach."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = ""
    seed: NonNegativeInt = 0
    num_steps: PositiveInt
    """Optimizer updates; with ``algorithm.num_updates`` each step makes so many on the same videos."""
    videos_per_step: PositiveInt
    """Videos of one step over all workers."""
    algorithm: AlgorithmConfig = VaderConfig()
    """``{name: vader}``, or a baseline: ``{name: ddpo, …}``, ``{name: dpo, …}``."""
    model: ModelConfig
    adapter: AdapterConfig = AdapterConfig()
    prompts: PromptsConfig
    sampling: SamplingConfig
    rewards: tuple[RewardConfig, ...] = Field(min_length=1)
    eval_rewards: tuple[RewardConfig, ...] = ()
    """Scored in every evaluation, never trained: they expose reward hacking."""
    optimizer: OptimizerConfig = OptimizerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    guard: GuardConfig = GuardConfig()
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
        if unknown := [measure for measure in self.guard.measures if measure not in (metrics := self._watchable())]:
            raise ValueError(f"guard.measures: {unknown[0]!r} is never measured; choose of {', '.join(metrics)}")
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

    @model_validator(mode="after")
    def _fits_the_algorithm(self) -> Self:
        name, sampling = self.algorithm.name, self.sampling
        if name == "vader":
            return self
        for field in ("truncation", "truncation_depth", "window_start", "chain", "replay", "prefix_cache"):
            if (value := getattr(sampling, field)) != (default := type(sampling).model_fields[field].default):
                raise ValueError(
                    f"sampling.{field}={value} has no effect on algorithm.name={name}; set it to {default}, or name=vader"
                )
        if name == "ddpo" and sampling.eta == 0:
            raise ValueError("algorithm.name=ddpo needs stochastic denoising steps; set sampling.eta to 1 (DDIM alone has it)")
        if name == "dpo" and self.videos_per_step % (2 * self.machine.num_workers):
            raise ValueError(
                f"algorithm.name=dpo makes pairs, and videos_per_step={self.videos_per_step} gives machine.num_workers="
                f"{self.machine.num_workers} no equal number of them; choose a multiple of {2 * self.machine.num_workers}"
            )
        return self

    def _eval_metrics(self) -> list[str]:
        return ["eval/objective", *(f"eval/reward/{reward.name}" for reward in (*self.rewards, *self.eval_rewards))]

    def _watchable(self) -> list[str]:
        judged = [f"eval/judge/{trait}" for trait in ("colour", "shape", "direction")] if self.evaluation.judge else []
        return [*self._eval_metrics(), "eval/diversity", "eval/motion", "eval/distance_to_base", *judged]

    def guarded(self) -> tuple[str, ...]:
        """The metrics that the guard watches."""
        if self.guard.action == "none":
            return ()
        return self.guard.measures or tuple(f"eval/reward/{reward.name}" for reward in self.eval_rewards[:1])

    def selection(self) -> str:
        """The metric by which the best adapter is kept."""
        if self.evaluation.select is not None:
            return self.evaluation.select
        return f"eval/reward/{self.eval_rewards[0].name}" if self.eval_rewards else "eval/objective"

    def identity(self) -> dict[str, Any]:
        """What decides each step, as plain JSON: a run may be continued, or prolonged, only with the same identity."""
        where_and_how_long = {"machine", "tracking", "checkpoint", "num_steps", "must_reach", "description"}
        identity = self.model_dump(mode="json", exclude=where_and_how_long)
        identity["prompts"].pop("column")  # the prompts that were read from it are here
        identity["sampling"].pop("replay")  # exact, and `auto` may choose another on another machine
        for reward in (*identity["rewards"], *identity["eval_rewards"]):
            transport = (reward.pop("placement") or {}).get("transport", "float32")
            if transport != "float32":  # the one thing about its place that a result depends on
                reward["transport"] = transport
        return identity
