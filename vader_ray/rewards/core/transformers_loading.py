"""Folders in transformers' format that rewards take their networks from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from vader_ray.config import ConfigError
from vader_ray.weights import load_strictly, read_state_dict

TRANSFORMERS_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
"""What a reward reads of a hub repository in transformers' format."""


def read_json(path: Path) -> Any:
    """The content of a settings file that lies beside weights."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read ({type(error).__name__}); copy it from the weights' hub repository"
        ) from error


def check_model_type(folder: Path, *expected: str) -> None:
    """Refuse a folder of transformers whose ``config.json`` states another architecture."""
    config = read_json(folder / "config.json")
    found = config.get("model_type") if isinstance(config, dict) else None
    if found not in expected:
        raise ConfigError(
            f"{folder} holds a network of the type {found!r}, not {' or '.join(expected)}; give one that fits"
        )


def load_folder(
    network: nn.Module,
    folder: Path,
    *,
    without: tuple[str, ...] = (),
    renamed: Mapping[str, str] | None = None,
) -> None:
    """Fill every weight from a folder of transformers; those whose names start with ``without`` are left out.

    ``renamed`` says a published name's successor, taken where this version of the network has it.
    """
    files = [folder / name for name in ("model.safetensors", "pytorch_model.bin")]
    source = next((file for file in files if file.is_file()), files[0])
    successors = {old: new for old, new in (renamed or {}).items() if new in network.state_dict()}
    state = {
        successors.get(name, name): tensor
        for name, tensor in read_state_dict(source).items()
        if not (without and name.startswith(without))
        and not name.endswith("position_ids")  # a buffer of old versions
    }
    load_strictly(network, state, source)


def image_statistics(folder: Path) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, from the folder's ``preprocessor_config.json``."""
    path = folder / "preprocessor_config.json"
    settings = read_json(path)
    if not isinstance(settings, dict) or not {"image_mean", "image_std"} <= settings.keys():
        raise ConfigError(
            f"{path} states no image_mean and image_std; copy it from the weights' hub repository"
        )
    return settings["image_mean"], settings["image_std"]
