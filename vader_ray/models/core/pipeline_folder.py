"""Checks of a local folder in diffusers' format, before a library reads it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from vader_ray.errors import UserError

INDEX = "model_index.json"
"""File with the class of a pipeline and of its components."""
MAX_INDEX_BYTES = 2**20
"""Largest `INDEX`; those of published pipelines have fewer than a thousand bytes."""


def check_pipeline_folder(source: str) -> None:
    """Check the index of a local pipeline, and that the folders of its components exist.

    A hub id is not checked, as its files are not here yet.

    Raises:
        UserError: names the file, what is wrong with it, and the remedy.
    """
    folder = Path(source)
    if not os.path.exists(folder):
        return
    if not os.path.isdir(folder):
        raise _refusal(folder, "it is no folder")
    index = _read_index(folder / INDEX)
    if not isinstance(index.get("_class_name"), str):
        raise _refusal(folder / INDEX, "its _class_name, the class of the pipeline, is not given as text")
    for name, entry in index.items():
        if not _is_component(name, entry):
            continue
        if not (isinstance(entry, list) and len(entry) == 2 and all(map(_is_name, entry))):
            raise _refusal(folder / INDEX, f"its {name} is {str(entry)[:100]}, not [library, class]")
        if None not in entry and not os.path.isdir(folder / name):
            raise _refusal(folder, f"its component {name} is missing")


def _read_index(path: Path) -> dict[str, Any]:
    if not os.path.isfile(path):
        raise _refusal(path.parent, f"it has no {INDEX}")
    if path.stat().st_size > MAX_INDEX_BYTES:
        raise _refusal(path, f"it has more than {MAX_INDEX_BYTES} bytes")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _refusal(path, f"it is no JSON ({str(error)[:100]})") from None
    if not isinstance(index, dict):
        raise _refusal(path, f"it is a {type(index).__name__}, not an object")
    return index


def _is_component(name: str, entry: object) -> bool:
    """Whether an entry is a component; the others are private or settings of the pipeline."""
    return not name.startswith("_") and not isinstance(entry, bool | int | float | str | None)


def _is_name(part: object) -> bool:
    return part is None or isinstance(part, str)


def _refusal(path: Path, problem: str) -> UserError:
    return UserError(
        f"model.weights: {path} is no pipeline in diffusers' format: {problem}; download the weights again, "
        "or give a folder that pipe.save_pretrained() wrote"
    )
