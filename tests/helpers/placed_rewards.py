"""Recipes whose rewards run in Ray actors, and frames for them to score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.helpers.recipe import tiny_config
from vader_ray.config import ExperimentConfig

CLIP, CENTRE, BROKEN, PAIRS = (
    f"tests.helpers.served_rewards.{name}" for name in ("Clip", "Centre", "Broken", "Pairs")
)


def random_frames(seed: int = 0) -> torch.Tensor:
    """Two videos of three frames of 8 by 8 pixels."""
    return torch.rand(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def placed_reward(
    reward: str, actor: str = "pool", *, options: dict[str, Any] | None = None, **placement: Any
) -> dict[str, Any]:
    """A reward of a recipe that half a CPU computes in an actor."""
    return {"reward": reward, **(options or {}), "placement": {"actor": actor, "num_cpus": 0.5, **placement}}


def config_of(*rewards: dict[str, Any], **changes: Any) -> ExperimentConfig:
    """The tiny recipe with these rewards, without weights."""
    return tiny_config(Path("unused"), rewards=list(rewards), **changes)
