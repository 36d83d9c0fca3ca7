"""Read recipes from YAML files, apply dotted overrides, and report errors with the path of the field."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from vader_ray.config.experiment import ExperimentConfig
from vader_ray.errors import UserError
from vader_ray.paths import PACKAGE

RECIPES = PACKAGE / "recipes"
"""Folder of the packaged recipes."""


def recipe_names() -> list[str]:
    """List the names of the packaged recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load(recipe: str, overrides: Iterable[str] = ()) -> ExperimentConfig:
    """Read a recipe, apply ``a.b=value`` overrides and validate it.

    Args:
        recipe: name of a packaged recipe, or path of a YAML file.
        overrides: settings that replace or add to those of the file; lists are addressed by index.

    Raises:
        UserError: one line per problem, each with the field's path.
    """
    path = _recipe_path(recipe)
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML: {error}") from None
    if not isinstance(document, dict):
        raise UserError(f"{path} must hold a mapping of settings, not {type(document).__name__}")
    for text in overrides:
        _override(document, text)
    return validate(document, folder=path.parent)


def validate(document: Mapping[str, Any], *, folder: Path | None = None) -> ExperimentConfig:
    """Validate the settings of a plain dict, as it comes from a recipe file or another process.

    Raises:
        UserError: one line per problem, each with the field's path.
    """
    try:
        return ExperimentConfig.model_validate(document, context={"folder": folder})
    except ValidationError as error:
        raise UserError("\n".join(explain(error, ExperimentConfig))) from None


def override(config: ExperimentConfig, overrides: Iterable[str]) -> ExperimentConfig:
    """Return the recipe with ``a.b=value`` overrides applied, validated again."""
    document = config.model_dump(mode="json", exclude_none=True)
    for text in overrides:
        _override(document, text)
    return validate(document)


def flatten(value: object, prefix: str = "") -> dict[str, object]:
    """Flatten nested settings to dotted paths: ``{"sampling.truncation_depth": 1, "rewards.0.reward": "hps",
    …}``."""
    if isinstance(value, Mapping):
        items: Iterable[tuple[object, object]] = value.items()
    elif isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
        items = enumerate(value)
    else:
        return {prefix: value}
    flat: dict[str, object] = {}
    for key, item in items:
        flat |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _recipe_path(recipe: str) -> Path:
    if recipe in recipe_names():
        return RECIPES / f"{recipe}.yaml"
    path = Path(recipe).expanduser()
    if path.is_file():
        return path.resolve()
    raise UserError(
        f"there is no recipe {recipe!r}; give the path of a YAML file or one of {', '.join(recipe_names())}"
    )


def _override(document: dict[str, Any], text: str) -> None:
    """Set ``a.b=value`` in a nested document; numbers are indices of lists; the value is read as YAML."""
    address, equals, value = text.partition("=")
    if not equals or not address:
        raise UserError(f"{text!r} is not an override; write a.b=value")
    *parents, last = address.split(".")
    node: Any = document
    for key in parents:
        node = _child(node, key, address)
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"{address}: {value!r} is not a YAML value") from None
    if isinstance(parsed, str):
        parsed = _number(parsed)
    if isinstance(node, list):
        node[_index(node, last, address)] = parsed
    else:
        node[last] = parsed


def _number(text: str) -> str | float:
    """Convert a number that YAML 1.1 reads as text, such as 1e-4."""
    try:
        return float(text)
    except ValueError:
        return text


def _child(node: Any, key: str, address: str) -> Any:
    child = node[_index(node, key, address)] if isinstance(node, list) else node.setdefault(key, {})
    if not isinstance(child, (dict, list)):
        raise UserError(f"{address}: {key!r} is a value, not a section")
    return child


def _index(items: list[Any], key: str, address: str) -> int:
    if not key.isdigit() or int(key) >= len(items):
        raise UserError(f"{address}: {key!r} is no item of a list of {len(items)}")
    return int(key)


def explain(error: ValidationError, model: type[BaseModel], *, section: str = "") -> Iterator[str]:
    """Yield one line per problem, which begins with the path of the setting.

    Args:
        error: pydantic's error.
        model: the validated model.
        section: path in the recipe of the validated settings; empty for the whole recipe.
    """
    problems = error.errors()
    locations = [problem["loc"] for problem in problems]
    for problem in problems:
        location = problem["loc"]
        if any(len(other) > len(location) and other[: len(location)] == location for other in locations):
            continue  # the section is refused only because of a field in it
        path = ".".join([section] * bool(section) + [str(part) for part in location]) or "recipe"
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = f"there is no such setting; here are {', '.join(_siblings(location[:-1], model))}"
        elif problem["type"] == "missing":
            message = "is required"
        elif "Value error" not in problem["msg"]:
            message = f"{message}, not {problem['input']!r}"
        yield f"{path}: {message}"


def _siblings(location: tuple[int | str, ...], model: Any) -> list[str]:
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            model = model.model_fields[part].annotation
    return sorted(getattr(model, "model_fields", {}))
