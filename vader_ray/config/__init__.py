"""Every setting of a run: frozen, validated at load, unknown keys refused. Imports no framework.

``load("shapes_hps", ["sampling.truncation_depth=2"])`` reads a recipe (a packaged name or the path of a YAML file),
applies dotted overrides, resolves every path and returns an `ExperimentConfig` that can travel as plain JSON.
"""

from vader_ray.config.experiment import ExperimentConfig
from vader_ray.config.loading import RECIPES, ConfigError, flatten, load, override, recipe_names, validate
from vader_ray.config.schema import (
    ActivationCheckpointing,
    AdapterConfig,
    AlgorithmConfig,
    CheckpointConfig,
    DdpoConfig,
    DpoConfig,
    EvaluationConfig,
    FrameRule,
    GuardConfig,
    ModelConfig,
    OptimizerConfig,
    PlacementConfig,
    Precision,
    PromptsConfig,
    RewardConfig,
    RuntimeConfig,
    SamplingConfig,
    Settings,
    TrackingConfig,
    VaderConfig,
)
from vader_ray.paths import Weights, locate, split_image

__all__ = [
    "RECIPES",
    "ActivationCheckpointing",
    "AdapterConfig",
    "AlgorithmConfig",
    "CheckpointConfig",
    "ConfigError",
    "DdpoConfig",
    "DpoConfig",
    "EvaluationConfig",
    "ExperimentConfig",
    "FrameRule",
    "GuardConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PlacementConfig",
    "Precision",
    "PromptsConfig",
    "RewardConfig",
    "RuntimeConfig",
    "SamplingConfig",
    "Settings",
    "TrackingConfig",
    "VaderConfig",
    "Weights",
    "flatten",
    "load",
    "locate",
    "override",
    "recipe_names",
    "split_image",
    "validate",
]
