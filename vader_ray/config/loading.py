"""Recipes from YAML files, with dotted overrides, and messages that name the field at fault."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from vader_ray.config.experiment import ExperimentConfig
from vader_ray.config.schema import DdpoConfig, DpoConfig, VaderConfig
from vader_ray.config.settings import Settings
from vader_ray.errors import UserError
from vader_ray.paths import PACKAGE

_ALGORITHMS: dict[str, type[Settings]] = {"vader": VaderConfig, "ddpo": DdpoConfig, "dpo": DpoConfig}
RECIPES = PACKAGE / "recipes"


class ConfigError(UserError):
    """A setting that the user can correct; the message names its path and the remedy."""


def recipe_names() -> list[str]:
    """The packaged recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load(recipe: str, overrides: Iterable[str] = ()) -> ExperimentConfig:
    """The validated recipe, a packaged name or the path of a YAML file, with ``a.b=value`` overrides applied.

    Raises:
        ConfigError: one line per problem, each with the field's path.
    """
    path = _recipe_path(recipe)
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path} must hold a mapping of settings, not {type(document).__name__}")
    for text in overrides:
        _override(document, text)
    return validate(document, folder=path.parent)


def validate(document: Mapping[str, Any], *, folder: Path | None = None) -> ExperimentConfig:
    """The settings of a plain dict, as a recipe file or another process gives them."""
    try:
        return ExperimentConfig.model_validate(document, context={"folder": folder})
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error))) from None


def override(config: ExperimentConfig, overrides: Iterable[str]) -> ExperimentConfig:
    """The recipe with ``a.b=value`` overrides applied."""
    document = config.model_dump(mode="json", exclude_none=True)
    for text in overrides:
        _override(document, text)
    return validate(document)


def flatten(value: object, prefix: str = "") -> dict[str, object]:
    """Dotted paths and their values: ``{"sampling.truncation_depth": 1, "rewards.0.reward": "hps", …}``."""
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
    raise ConfigError(
        f"there is no recipe {recipe!r}; give the path of a YAML file or one of {', '.join(recipe_names())}"
    )


def _override(document: dict[str, Any], text: str) -> None:
    """Set ``a.b=value`` in a nested document; numbers address list items; the value is read as YAML."""
    address, equals, value = text.partition("=")
    if not equals or not address:
        raise ConfigError(f"{text!r} is not an override; write a.b=value")
    *parents, last = address.split(".")
    node: Any = document
    for key in parents:
        node = _child(node, key, address)
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"{address}: {value!r} is not a YAML value") from None
    if isinstance(parsed, str):
        parsed = _number(parsed)
    if isinstance(node, list):
        node[_index(node, last, address)] = parsed
    else:
        node[last] = parsed


def _number(text: str) -> str | float:
    """YAML 1.1 reads 1e-4 as text; a person means the number."""
    try:
        return float(text)
    except ValueError:
        return text


def _child(node: Any, key: str, address: str) -> Any:
    child = node[_index(node, key, address)] if isinstance(node, list) else node.setdefault(key, {})
    if not isinstance(child, (dict, list)):
        raise ConfigError(f"{address}: {key!r} is a value, not a section")
    return child


def _index(items: list[Any], key: str, address: str) -> int:
    if not key.isdigit() or int(key) >= len(items):
        raise ConfigError(f"{address}: {key!r} is no item of a list of {len(items)}")
    return int(key)


def _explain(error: ValidationError) -> Iterator[str]:
    problems = error.errors()
    places = [problem["loc"] for problem in problems]
    for problem in problems:
        if any(
            len(place) > len(problem["loc"]) and place[: len(problem["loc"])] == problem["loc"]
            for place in places
        ):
            continue  # the list is faulty only because of its item
        path = ".".join(str(part) for part in _address(problem["loc"])) or "recipe"
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = f"there is no such setting; here are {', '.join(_siblings(problem['loc'][:-1]))}"
        elif problem["type"] == "missing":
            message = "is required"
        elif "Value error" not in problem["msg"]:
            message = f"{message}, not {problem['input']!r}"
        yield f"{path}: {message}"


def _address(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """The location without the algorithm's name, which pydantic puts after ``algorithm``."""
    return location[:1] + location[2:] if location[:1] == ("algorithm",) else location


def _siblings(location: tuple[int | str, ...]) -> list[str]:
    if location[:1] == ("algorithm",):
        return sorted(_ALGORITHMS[str(location[1])].model_fields)
    model: Any = ExperimentConfig
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            model = model.model_fields[part].annotation
    return sorted(getattr(model, "model_fields", {}))
