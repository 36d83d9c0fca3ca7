"""Cache of the models, rewards and metrics that a process has loaded, for its later runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import Any

import torch

from vader_ray.alignment import algorithms
from vader_ray.config import ExperimentConfig, PluginConfig, SamplingConfig


class ModelCache:
    """Loaded objects by a key of all settings on which they depend: equal settings load once in a process."""

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {}

    def evict_except(self, keys: Collection[str]) -> None:
        """Drop all objects but these, to free their memory before more is loaded."""
        self._kept = {key: kept for key, kept in self._kept.items() if key in keys}

    def get_or_load(self, key: str, load: Callable[[], Any]) -> Any:
        """Return the object of this key; call ``load`` and keep its result if there is none."""
        if key not in self._kept:
            self._kept[key] = load()
        return self._kept[key]

    def __contains__(self, key: str) -> bool:
        return key in self._kept


def model_key(config: ExperimentConfig, device: torch.device) -> str:
    """Return the key of a model without its adapter.

    The prompts are part of it: the text encoders are freed once these are encoded.
    """
    chosen = config.model_dump(mode="json", include={"model", "sampling", "prompts", "runtime"})
    chosen["pairs"] = algorithms.build(config).pairs_file
    chosen["adapter.text_encoders"] = config.adapter.text_encoders()  # these are not freed
    for field in (
        "truncation",
        "truncation_depth",
        "truncation_options",
        "truncation_clips",
        "recompute",
    ):  # the choice of gradient steps changes nothing that is loaded
        del chosen["sampling"][field]
    return f"model on {device}: {json.dumps(chosen, sort_keys=True)}"


def conditioning_key(config: ExperimentConfig, device: torch.device) -> str:
    """Return the key of the prompts' conditioning, which depends on the model and the prompts."""
    return f"conditioning of {model_key(config, device)}"


def plugin_key(spec: PluginConfig, sampling: SamplingConfig, device: torch.device) -> str:
    """Return the key of a reward or metric: its settings, and the video size of its contract check."""
    chosen = spec.model_dump(mode="json", exclude={"label", "weight", "target", "hinge", "dropout"})
    size = [sampling.total_frames(), sampling.height, sampling.width]
    return f"{spec.kind} on {device}: {json.dumps([chosen, *size], sort_keys=True)}"
