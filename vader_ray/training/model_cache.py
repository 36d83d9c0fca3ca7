"""What a process keeps loaded between its runs, and under which keys: all that a loaded thing depends on."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import Any

import torch

from vader_ray.config import ExperimentConfig, RewardConfig, SamplingConfig


class ModelCache:
    """What this process has loaded, for a later run in it: whatever that run loads with the same settings is there already."""

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {}

    def evict_except(self, keys: Collection[str]) -> None:
        """Let go of everything else, before more is loaded."""
        self._kept = {key: kept for key, kept in self._kept.items() if key in keys}

    def get_or_load(self, key: str, load: Callable[[], Any]) -> Any:
        """What was loaded under this key, else what ``load`` gives."""
        if key not in self._kept:
            self._kept[key] = load()
        return self._kept[key]

    def __contains__(self, key: str) -> bool:
        return key in self._kept


def model_key(config: ExperimentConfig, device: torch.device) -> str:
    """All that a model without its adapter depends on, and the prompts, for its text encoders are gone after these."""
    chosen = config.model_dump(mode="json", include={"model", "sampling", "prompts", "runtime"})
    chosen["pairs"] = str(getattr(config.algorithm, "pairs", None))
    for field in (
        "truncation",
        "truncation_depth",
        "window_start",
        "backprop_through_input",
        "recompute",
    ):  # which steps are graded, and how
        del chosen["sampling"][field]
    return f"model on {device}: {json.dumps(chosen, sort_keys=True)}"


def conditioning_key(config: ExperimentConfig, device: torch.device) -> str:
    """What the prompts' conditioning depends on: the model and the prompts."""
    return f"conditioning of {model_key(config, device)}"


def reward_key(spec: RewardConfig, sampling: SamplingConfig, device: torch.device) -> str:
    """All that a reward depends on, and the size of videos on which it has shown that it keeps its contract."""
    chosen = spec.model_dump(mode="json", exclude={"label", "weight", "target"})
    return f"reward on {device}: {json.dumps([chosen, sampling.num_frames, sampling.height, sampling.width], sort_keys=True)}"
