"""The sections of a recipe that name a plugin: algorithm, rewards and metrics. Their further keys are its
options."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveFloat, model_validator

from vader_ray.config.settings import FrameRule, NonNegativeCount, RuntimeEnv, Settings


class AlgorithmConfig(Settings):
    """The algorithm that turns rewards into gradients of the adapter; further keys are its own options."""

    model_config = ConfigDict(extra="allow")

    name: str = "vader"
    """A file of ``vader_ray/alignment/algorithms`` (``vader``, ``ddpo``, ``dpo``) or the dotted name of a
    module or class of yours."""

    @property
    def options(self) -> dict[str, Any]:
        """The algorithm's own settings, checked by `vader_ray.alignment.algorithms.check`."""
        return dict(self.model_extra or {})


class PlacementConfig(Settings):
    """Ray actors that compute a reward's scores and gradients instead of the workers."""

    actor: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the pool of actors, unique in the recipe."""
    only_if_needed: bool = False
    """Compute the reward in the workers if it fits into their memory beside the model and the other rewards,
    and in actors if not; decided once before the run, and only for free GPUs of the cluster."""
    shared: bool = False
    """Use the cluster's pool of this name if it runs, and leave it running: the trials of a sweep then load a
    large reward once. ``vader-ray pools --stop NAME`` ends it."""
    num_replicas: int = Field(default=1, gt=0, le=2**12)
    """Number of actors in the pool; requests are distributed in turn."""
    num_cpus: NonNegativeFloat = 1.0
    """CPU cores that Ray reserves for each actor."""
    num_gpus: NonNegativeFloat = 0.0
    """GPUs that Ray reserves for each actor; a fraction shares one with other processes, 0 computes on the
    CPU."""
    resources: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Custom Ray resources that each actor needs, to choose its nodes."""
    runtime_env: RuntimeEnv = Field(default_factory=dict)
    """Ray runtime environment of the actors, for a reward that needs other packages than the workers. The
    values of its ``env_vars`` are in no file of a run; null takes one from the environment of the driver."""
    transport: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of frames and gradients on the network; half precision halves the traffic, and gradients are
    scaled to its range."""
    resize_frames: bool = True
    """Resize frames as the reward does before they are sent, if this makes them smaller; scores and gradients
    differ by rounding at most. False sends the pixels that the reward looks at as they are."""
    timeout_seconds: PositiveFloat = 600.0
    """Longest wait in seconds for one result; then the actor is restarted and the request repeated."""
    max_retries: NonNegativeCount = 3
    """Number of times that one request is repeated after an actor died or timed out; then the run fails."""


class PluginConfig(Settings):
    """Settings of every plugin; the further keys of the section are the plugin's own options."""

    model_config = ConfigDict(extra="allow")

    kind: ClassVar[str]
    """Field that names the plugin; also the noun for it in messages."""

    label: str | None = Field(default=None, pattern=r"^[\w.\- ]+$", max_length=100)
    """Name in the logged metrics (``train/reward/LABEL``, ``eval/reward/LABEL``, of a metric ``eval/LABEL``),
    to distinguish two settings of one plugin; by default the last part of the plugin's name."""
    frames: FrameRule = "all"
    """Frames that are scored: ``all``, ``random:n`` (the VADER authors train with random:1; evaluations score
    all), ``stride:n`` (they use 2), ``first:n``, ``first_middle_last`` or ``frame:i``. A causal decoder stops
    after the last frame that a reward needs, and the first latent frame of Wan, CogVideoX, HunyuanVideo, LTX
    and Mochi is one frame: with ``first:1`` nothing else is decoded."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the plugin's networks; preprocessing, scores and ∂R/∂frames stay in float32."""

    @property
    def name(self) -> str:
        """Name in the logged metrics."""
        return self.label or str(getattr(self, self.kind)).rsplit(".", 1)[-1]

    @property
    def options(self) -> dict[str, Any]:
        """The plugin's own settings, checked by `vader_ray.plugin_options.check_options`."""
        return dict(self.model_extra or {})


class RewardConfig(PluginConfig):
    """One reward of the objective, or of the evaluations."""

    kind: ClassVar[str] = "reward"

    reward: str = Field(min_length=1, max_length=500)
    """A file of ``vader_ray/rewards`` (``hps``) or the dotted name of a module or class of yours."""
    weight: float = 1.0
    """Factor of the reward in the objective, which is a weighted sum; no effect in ``eval_rewards``."""
    target: float | None = None
    """Score to reach: the reward contributes −|score − target| instead of its score, which rises without
    bound."""
    hinge: float | None = None
    """Score that is enough: the reward contributes −max(0, hinge − score) instead of its score, so a video
    above it has no gradient of this reward (the loss of ReFL, arXiv 2304.05977). Unlike ``target``, it lowers
    no score."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Probability that a training step leaves the reward out and does not compute it. In the other steps its
    weight is divided by the probability that it is kept, so the gradient is that of the whole mix on average.
    Drawn from the seed and the step, again where no reward would be left; such a step logs no score of the
    reward. For several rewards and ``algorithm.name=vader``."""
    placement: PlacementConfig | None = None
    """Ray actors that compute the reward; by default every worker computes it. ``auto`` is one actor with a
    GPU, named like the reward, with ``only_if_needed``."""

    @model_validator(mode="before")
    @classmethod
    def _expand_auto(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("placement") != "auto":
            return given
        name = str(given.get("label") or given.get("reward")).rsplit(".", 1)[-1]
        actor = re.sub(r"[^A-Za-z0-9._-]", "_", name)
        return given | {"placement": {"actor": actor, "num_gpus": 1.0, "only_if_needed": True}}

    @model_validator(mode="after")
    def _hinge_fits(self) -> RewardConfig:
        if self.hinge is not None and self.target is not None:
            raise ValueError(
                f"hinge={self.hinge:g} cannot be combined with target={self.target:g}, which also lowers "
                "scores above it; leave one of the two out"
            )
        if self.hinge is not None and self.weight < 0:
            raise ValueError(
                f"hinge={self.hinge:g} bounds a score that is raised, and weight={self.weight:g} lowers it; "
                "give a positive weight, or leave hinge out"
            )
        return self


class MetricConfig(PluginConfig):
    """One metric of the evaluations, never trained."""

    kind: ClassVar[str] = "metric"

    metric: str = Field(min_length=1, max_length=500)
    """A file of ``vader_ray/metrics`` (``clip_diversity``) or the dotted name of a module or class of
    yours."""


DEFAULT_METRICS = tuple(MetricConfig(metric=name) for name in ("motion", "diversity", "distance_to_base"))
"""Metrics of every evaluation; they need no weights."""

RESERVED_METRIC_NAMES = frozenset(
    {
        "base",
        "best_step",
        "effect_size",
        "gain",
        "gain_high",
        "gain_low",
        "gain_standard_error",
        "objective",
        "reward",
    }
)
"""First parts of ``eval/…`` that every evaluation logs itself, so no metric has such a name."""


def is_metric_value(logged: str) -> bool:
    """Whether a logged name ``eval/…`` is the value of a metric, not of a reward or of the evaluation
    itself."""
    first = logged.removeprefix("eval/").partition("/")[0]
    return logged.startswith("eval/") and first not in RESERVED_METRIC_NAMES
