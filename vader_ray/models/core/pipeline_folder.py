"""Checks of a local folder in diffusers' format, before a library reads it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from vader_ray.errors import UserError

INDEX = "model_index.json"
"""File with the class of a pipeline and of its components."""
CONFIGS = ("config.json", "scheduler_config.json")
"""Files with the settings of a component."""
MAX_BYTES = 2**20
"""Largest of these files; those of published pipelines have a few thousand bytes."""


def check_pipeline_folder(source: str) -> None:
    """Check the index of a local pipeline, and the folders and settings of its components.

    A hub id is not checked, as its files are not here yet.

    Raises:
        UserError: names the file, what is wrong with it, and the remedy.
    """
    folder = Path(source)
    if not os.path.exists(folder):
        return
    if not os.path.isdir(folder):
        raise _refusal(folder, "it is no folder")
    index = _read_object(folder / INDEX)
    if not isinstance(index.get("_class_name"), str):
        raise _refusal(folder / INDEX, "its _class_name, the class of the pipeline, is not given as text")
    for name, entry in index.items():
        if not is_component(name, entry):
            continue
        if not (isinstance(entry, list) and len(entry) == 2 and all(map(_is_name, entry))):
            raise _refusal(folder / INDEX, f"its {name} is {str(entry)[:100]}, not [library, class]")
        if None not in entry:
            _check_component(folder / name)


def _check_component(folder: Path) -> None:
    if not os.path.isdir(folder):
        raise _refusal(folder.parent, f"its component {folder.name} is missing")
    for name in CONFIGS:
        if os.path.lexists(folder / name):
            _read_object(folder / name)


def _read_object(path: Path) -> dict[str, Any]:
    if not os.path.isfile(path):
        raise _refusal(path.parent, f"it has no {path.name}")
    if path.stat().st_size > MAX_BYTES:
        raise _refusal(path, f"it has more than {MAX_BYTES} bytes")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _refusal(path, f"it is no JSON ({str(error)[:100]})") from None
    if not isinstance(content, dict):
        raise _refusal(path, f"it is a {type(content).__name__}, not an object")
    return content


def is_component(name: str, entry: object) -> bool:
    """Whether an entry is a component; the others are private or settings of the pipeline."""
    return not name.startswith("_") and not isinstance(entry, bool | int | float | str | None)


def _is_name(part: object) -> bool:
    return part is None or isinstance(part, str)


def _refusal(path: Path, problem: str) -> UserError:
    return UserError(
        f"model.weights: {path} is no pipeline in diffusers' format: {problem}; download the weights again, "
        "or give a folder that pipe.save_pretrained() wrote"
    )
