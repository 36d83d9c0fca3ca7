"""A recipe for the tiny random pipeline and a reward without network: a run of seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from vader_ray.config import ExperimentConfig, validate

MINIMAL = """
name: mine
num_steps: 2
videos_per_step: 2
model: {family: modelscope, weights: owner/name}
prompts: {train: [a], validation: [b]}
sampling: {num_frames: 1, height: 8, width: 8}
rewards: [{reward: brightness}]
"""
"""A recipe file with the required settings only."""


FIRING_GUARD = {"metrics": ["eval/distance_to_base"], "false_alarm_rate": 0.5}
"""A guard that fires as soon as the videos of `FOUR_PROMPTS` differ from the base model's."""
FOUR_PROMPTS = [f"a {colour} circle moving left" for colour in ("white", "purple", "grey", "pink")]
"""Prompts of evaluation, in each of which `FIRING_GUARD` can find a fall in up to six evaluations."""


def validated_on(prompts: list[str]) -> dict[str, Any]:
    """Return the prompts of a recipe that is evaluated on these."""
    return {"train": ["a red circle moving left", "a blue star moving up"], "validation": prompts}


def tiny_document(weights: Path, **changes: Any) -> dict[str, Any]:
    """The recipe as a plain dict."""
    document: dict[str, Any] = {
        "name": "tiny",
        "num_steps": 6,
        "videos_per_step": 4,
        "model": {"family": "modelscope", "weights": str(weights)},
        "adapter": {"rank": 2},
        "prompts": {
            "train": ["a red circle moving left", "a blue star moving up", "a green square moving down"],
            "validation": ["a white circle moving left", "a purple star moving up"],
        },
        "sampling": {
            "num_frames": 3,
            "height": 8,
            "width": 8,
            "num_inference_steps": 5,
            "guidance_scale": 3.0,
        },
        "rewards": [{"reward": "brightness"}],
        "optimizer": {"learning_rate": 0.01},
        "evaluation": {"every": 3, "num_videos": 4, "num_shown": 2},
        "checkpoint": {"every": 2},
        "tracking": {"system_metrics": False},
    }
    return document | changes


def tiny_config(weights: Path, **changes: Any) -> ExperimentConfig:
    """The recipe, validated."""
    return validate(tiny_document(weights, **changes))


def write_tiny(folder: Path, weights: Path, **changes: Any) -> Path:
    """The recipe as a file."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_document(weights, **changes)))
    return path
