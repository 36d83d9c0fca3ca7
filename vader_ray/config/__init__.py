"""All settings of a run: frozen, validated at load, unknown keys refused. Imports no framework.

``load("shapes_hps", ["sampling.truncation_depth=2"])`` reads a recipe (a packaged name or the path of a YAML
file), applies dotted overrides, resolves every path and returns an `ExperimentConfig` that can travel as
plain JSON.
"""

from vader_ray.config.experiment import ExperimentConfig
from vader_ray.config.loading import (
    RECIPES,
    Overrides,
    explain,
    flatten,
    load,
    override,
    recipe_names,
    section,
    validate,
)
from vader_ray.config.plugins import (
    DEFAULT_METRICS,
    RESERVED_METRIC_NAMES,
    AlgorithmConfig,
    MetricConfig,
    PlacementConfig,
    PluginConfig,
    RewardConfig,
    is_metric_value,
)
from vader_ray.config.sampling import TRUNCATIONS, WHOLE_SAMPLING, GradientStepConfig, SamplingConfig
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
from vader_ray.config.settings import (
    ActivationCheckpointing,
    Count,
    FrameRule,
    MatmulPrecision,
    Precision,
    Quantization,
    Seed,
    Settings,
    Steps,
    check_seed,
    frames_needed,
)
from vader_ray.paths import Weights, locate, split_image

__all__ = [
    "DEFAULT_METRICS",
    "RECIPES",
    "RESERVED_METRIC_NAMES",
    "TRUNCATIONS",
    "WHOLE_SAMPLING",
    "ActivationCheckpointing",
    "AdapterConfig",
    "AlgorithmConfig",
    "CheckpointConfig",
    "Count",
    "EvaluationConfig",
    "ExperimentConfig",
    "FrameRule",
    "GenerationConfig",
    "GradientStepConfig",
    "GuardConfig",
    "MatmulPrecision",
    "MetricConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Overrides",
    "PlacementConfig",
    "PluginConfig",
    "Precision",
    "PromptsConfig",
    "Quantization",
    "RewardConfig",
    "RuntimeConfig",
    "SamplingConfig",
    "Seed",
    "Settings",
    "Steps",
    "TrackingConfig",
    "Weights",
    "check_seed",
    "explain",
    "flatten",
    "frames_needed",
    "is_metric_value",
    "load",
    "locate",
    "override",
    "recipe_names",
    "section",
    "split_image",
    "validate",
]
