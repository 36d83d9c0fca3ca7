"""Recipe files: what a file sets itself, and what it takes over from another by ``extends``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vader_ray.config.yaml_text import parse_yaml, read_text
from vader_ray.errors import UserError, did_you_mean
from vader_ray.paths import RECIPES, expand_user

EXTENDS = "extends"
"""Setting that names the file whose settings a file takes over."""
MAX_FILES = 10
"""Largest number of files that extend one another."""


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """One file of a recipe."""

    path: Path
    settings: dict[str, Any]
    """Nested settings as they stand in it, without ``extends``."""

    @property
    def label(self) -> str:
        """Path from the folder of the packaged recipes, or from the root."""
        is_packaged = self.path.is_relative_to(RECIPES)
        return str(self.path.relative_to(RECIPES) if is_packaged else self.path)


def recipe_names() -> list[str]:
    """List the names of the packaged recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def model_names() -> list[str]:
    """List the packaged settings of models, without rewards, that recipes extend: ``models/NAME``."""
    return sorted(f"models/{path.stem}" for path in RECIPES.glob("models/*.yaml"))


def describe_recipe(name: str) -> str:
    """Return the description of a packaged recipe or of the settings of a model."""
    return str(merge(read_recipe(name))["description"])


def read_recipe(recipe: str) -> list[RecipeFile]:
    """Read a recipe and the files that it extends.

    Args:
        recipe: name of a packaged recipe, or path of a YAML file.

    Returns:
        The recipe itself and then, file by file, what each extends.

    Raises:
        UserError: a file does not exist, is no YAML mapping, or extends itself.
    """
    files = list[RecipeFile]()
    path: Path | None = _find(recipe, Path())
    while path is not None:
        if len(files) == MAX_FILES or any(path == file.path for file in files):
            chain = " → ".join([*(file.label for file in files), path.name])
            raise UserError(
                f"{EXTENDS}: {chain}: a file cannot extend itself, and at most {MAX_FILES} form a recipe"
            )
        settings = _read(path)
        base = settings.pop(EXTENDS, None)
        if base is not None and not isinstance(base, str):
            raise UserError(f"{EXTENDS} in {path}: give the name of a recipe or the path of a YAML file")
        files.append(RecipeFile(path, settings))
        path = _find(base, path.parent) if base is not None else None
    return files


def merge(files: Sequence[RecipeFile]) -> dict[str, Any]:
    """Return the settings of a recipe's files: sections are merged, lists and values are replaced."""
    merged = dict[str, Any]()
    for file in reversed(files):
        merged = _merged(merged, file.settings)
    return merged


def _merged(base: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in settings.items():
        before = merged.get(name)
        is_section = isinstance(before, Mapping) and isinstance(value, Mapping)
        merged[name] = _merged(before, value) if is_section else value  # type: ignore[arg-type]
    return merged


def _find(name: str, folder: Path) -> Path:
    names = [*recipe_names(), *model_names()]
    if name in names:
        return RECIPES / f"{name}.yaml"
    if os.path.isfile(path := folder / expand_user(name)):
        return path.resolve()
    raise UserError(
        f"there is no recipe {name!r}; {did_you_mean(name, names)}give the path of a YAML file "
        f"or one of {', '.join(names if '/' in name else recipe_names())}"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        document = parse_yaml(read_text(path))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML: {error}") from None
    if not isinstance(document, dict):
        raise UserError(f"{path} must hold a mapping of settings, not {type(document).__name__}")
    return document
