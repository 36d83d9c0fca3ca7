"""Load networks of rewards from folders in transformers' format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import CLIPTokenizer, PreTrainedTokenizerBase

from vader_ray.errors import UserError
from vader_ray.weights import load_strictly, read_state_dict

TRANSFORMERS_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
"""Files that a reward reads from a hub repository in transformers' format."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
"""Files of a hub repository that hold its tokenizer."""


def read_json(path: Path) -> Any:
    """Return the content of a JSON file from the folder of the weights.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}); copy it from the weights' hub repository"
        ) from error


def check_model_type(folder: Path, *expected: str) -> None:
    """Check the architecture that a folder's ``config.json`` gives.

    Raises:
        UserError: it is not one of the expected.
    """
    config = read_json(folder / "config.json")
    found = config.get("model_type") if isinstance(config, dict) else None
    if found not in expected:
        raise UserError(
            f"{folder} has a network of the type {found!r}, not {' or '.join(expected)}; give one of that "
            "type"
        )


def load_folder(
    network: nn.Module,
    folder: Path,
    *,
    without: tuple[str, ...] = (),
    renamed: Mapping[str, str] | None = None,
) -> None:
    """Load every weight of a network from a folder in transformers' format.

    ``network`` must have the same weights as the file, with two exceptions:

    Args:
        network: is filled.
        folder: with ``model.safetensors`` or ``pytorch_model.bin``.
        without: beginnings of names in the file that are left out.
        renamed: new names of published names, used if the network of the installed transformers has them.

    Raises:
        UserError: the file is missing or damaged, or has other weights.
    """
    files = [folder / name for name in ("model.safetensors", "pytorch_model.bin")]
    source = next((file for file in files if file.is_file()), files[0])
    successors = {old: new for old, new in (renamed or {}).items() if new in network.state_dict()}
    state = {
        successors.get(name, name): tensor
        for name, tensor in read_state_dict(source).items()
        if not (without and name.startswith(without))
        and not name.endswith("position_ids")  # a buffer of old versions of transformers
    }
    load_strictly(network, state, source)


def image_statistics(folder: Path) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel, from the folder's ``preprocessor_config.json``."""
    path = folder / "preprocessor_config.json"
    settings = read_json(path)
    if not isinstance(settings, dict) or not {"image_mean", "image_std"} <= settings.keys():
        raise UserError(f"{path} has no image_mean and image_std; copy it from the weights' hub repository")
    return settings["image_mean"], settings["image_std"]


def load_tokenizer(folder: Path, kind: type[PreTrainedTokenizerBase] = CLIPTokenizer) -> Any:
    """Load the tokenizer of a folder.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if not (folder / "tokenizer.json").is_file():
        raise UserError(
            f"{folder} has no tokenizer.json; copy {' and '.join(TOKENIZER_FILES)} of its hub repository "
            "there"
        )
    try:
        return kind.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder}/tokenizer.json cannot be read ({type(error).__name__}); download it again"
        ) from error
