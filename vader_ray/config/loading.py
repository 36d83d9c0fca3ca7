"""Read recipes from YAML files, apply dotted overrides, and report errors with the path of the field."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from pydantic import BaseModel, ValidationError

from vader_ray.config.experiment import ExperimentConfig
from vader_ray.config.settings import KEEP_PASSWORDS
from vader_ray.config.yaml_text import MAX_BYTES, parse_yaml
from vader_ray.errors import UserError, did_you_mean, first_line
from vader_ray.paths import PACKAGE

RECIPES = PACKAGE / "recipes"
"""Folder of the packaged recipes."""


def recipe_names() -> list[str]:
    """List the names of the packaged recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


Overrides: TypeAlias = Iterable[str] | Mapping[str, Any]
"""Changed settings: texts ``a.b=value``, whose value is read as YAML, or dotted path → Python value."""


def load(recipe: str, overrides: Overrides = ()) -> ExperimentConfig:
    """Load and validate a recipe.

    Args:
        recipe: name of a packaged recipe, or path of a YAML file.
        overrides: settings to change.

    Raises:
        UserError: one line per problem, each with the field's path.
    """
    path = _recipe_path(recipe)
    try:
        if (num_bytes := path.stat().st_size) > MAX_BYTES:
            raise UserError(f"{path} has {num_bytes} bytes; a recipe has at most {MAX_BYTES}")
        document = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML: {error}") from None
    if not isinstance(document, dict):
        raise UserError(f"{path} must hold a mapping of settings, not {type(document).__name__}")
    _apply(document, overrides)
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


def override(config: ExperimentConfig, overrides: Overrides) -> ExperimentConfig:
    """Return the recipe with some settings changed."""
    document = config.model_dump(mode="json", exclude_none=True, context=KEEP_PASSWORDS)
    _apply(document, overrides)
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
        f"there is no recipe {recipe!r}; {did_you_mean(recipe, recipe_names())}give the path of a YAML file "
        f"or one of {', '.join(recipe_names())}"
    )


def _apply(document: dict[str, Any], overrides: Overrides) -> None:
    items = overrides.items() if isinstance(overrides, Mapping) else map(_parse, overrides)
    for address, value in items:
        _set(document, address, value)


def _parse(text: str) -> tuple[str, Any]:
    """Split ``a.b=value`` into the dotted path and the value, which is read as YAML."""
    address, equals, value = text.partition("=")
    if not equals or not address:
        raise UserError(f"{text!r} is not an override; write a.b=value")
    try:
        parsed = parse_yaml(value)
    except yaml.YAMLError as error:
        raise UserError(f"{address}: {value!r} is not a YAML value ({first_line(error)})") from None
    return address, _number(parsed) if isinstance(parsed, str) else parsed


def _set(document: dict[str, Any], address: str, value: Any) -> None:
    """Set the value at a dotted path in a nested document; numbers address the items of lists."""
    *parents, last = address.split(".")
    node: Any = document
    for key in parents:
        node = _child(node, key, address)
    if isinstance(node, list):
        node[_index(node, last, address)] = value
    else:
        node[last] = value


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
            known = _siblings(location[:-1], model)
            nearest = did_you_mean(str(location[-1]), known)
            message = f"there is no such setting; {nearest}here are {', '.join(known)}"
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
