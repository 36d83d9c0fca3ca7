"""All settings of a run: frozen, validated at load, unknown keys refused. Imports no framework.

``load("shapes_hps", ["sampling.truncation_depth=2"])`` reads a recipe (a packaged name or the path of a YAML
file), applies dotted overrides, resolves every path and returns an `ExperimentConfig` that can travel as
plain JSON.
"""

from vader_ray.config.experiment import ExperimentConfig
from vader_ray.config.loading import (
    ListedSetting,
    Overrides,
    apply_overrides,
    explain,
    flatten,
    list_settings,
    load,
    override,
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
from vader_ray.config.recipe_files import describe_recipe, merge, model_names, read_recipe, recipe_names
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
from vader_ray.paths import RECIPES, Weights, locate, split_image

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
    "ListedSetting",
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
    "apply_overrides",
    "check_seed",
    "describe_recipe",
    "explain",
    "flatten",
    "frames_needed",
    "is_metric_value",
    "list_settings",
    "load",
    "locate",
    "merge",
    "model_names",
    "override",
    "read_recipe",
    "recipe_names",
    "section",
    "split_image",
    "validate",
]
