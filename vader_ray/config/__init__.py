"""Every setting of a run: frozen, validated at load, unknown keys refused. Imports no framework.

``load("world_hps", ["sampling.truncation_depth=2"])`` reads a recipe (a packaged name or the path of a YAML file),
applies dotted overrides, resolves every path and returns an `ExperimentConfig` that can travel as plain JSON.
"""

from vader_ray.config.experiment import ExperimentConfig
from vader_ray.config.reading import RECIPES, ConfigError, flatten, load, override, recipe_names, validate
from vader_ray.config.sections import (
    ActivationCheckpointing,
    AdapterConfig,
    CheckpointConfig,
    EvaluationConfig,
    FrameRule,
    MachineConfig,
    ModelConfig,
    OptimizerConfig,
    PlacementConfig,
    Precision,
    PromptsConfig,
    RewardConfig,
    SamplingConfig,
    Settings,
    TrackingConfig,
)
from vader_ray.locations import Weights, locate, split_image

__all__ = [
    "RECIPES",
    "ActivationCheckpointing",
    "AdapterConfig",
    "CheckpointConfig",
    "ConfigError",
    "EvaluationConfig",
    "ExperimentConfig",
    "FrameRule",
    "MachineConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PlacementConfig",
    "Precision",
    "PromptsConfig",
    "RewardConfig",
    "SamplingConfig",
    "Settings",
    "TrackingConfig",
    "Weights",
    "flatten",
    "load",
    "locate",
    "override",
    "recipe_names",
    "split_image",
    "validate",
]
