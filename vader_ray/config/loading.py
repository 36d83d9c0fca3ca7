"""Read recipes from YAML files, apply dotted overrides, and report errors with the path of the field."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from reprlib import Repr
from types import NoneType, UnionType
from typing import Any, TypeAlias, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from vader_ray.config.experiment import ExperimentConfig
from vader_ray.config.recipe_files import merge, read_recipe
from vader_ray.config.settings import KEEP_PASSWORDS
from vader_ray.config.yaml_text import parse_yaml
from vader_ray.errors import UserError, did_you_mean

SectionT = TypeVar("SectionT", bound=BaseModel)
MAX_PROBLEMS = 20
"""Largest number of problems of one recipe that are explained."""
LONGEST_SHOWN = 100
"""Characters of a given value in a message; of a longer one the middle is left out."""


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
    files = read_recipe(recipe)
    document = merge(files)
    apply_overrides(document, overrides)
    return validate(document, folder=files[0].path.parent)


@dataclass(frozen=True, slots=True)
class ListedSetting:
    """A setting of a recipe and where its value comes from."""

    path: str
    """Dotted path."""
    value: Any
    """As it is written there: the name of a file of prompts, not its contents."""
    origin: str
    """The recipe's file or one that it extends, ``override`` or ``default``."""


def list_settings(recipe: str, overrides: Overrides = ()) -> list[ListedSetting]:
    """List all settings of a recipe with their origin.

    Args:
        recipe: name of a packaged recipe, or path of a YAML file.
        overrides: settings to change.

    Raises:
        UserError: one line per problem, each with the field's path.
    """
    files, changes = read_recipe(recipe), dict(_items(overrides))
    sources = [(file.label, flatten(file.settings).keys()) for file in files]
    document = merge(files)
    apply_overrides(document, changes)
    config, written = validate(document, folder=files[0].path.parent), flatten(document)

    def origin(path: str) -> str:
        if any(path == changed or path.startswith(f"{changed}.") for changed in changes):
            return "override"
        return next((label for label, paths in sources if path in paths), "default")

    return [
        ListedSetting(path, written.get(path, value), origin(path))
        for path, value in flatten(config.model_dump(mode="json")).items()
    ]


def validate(document: Mapping[str, Any], *, folder: Path | None = None) -> ExperimentConfig:
    """Validate the settings of a plain dict, as it comes from a recipe file or another process.

    Raises:
        UserError: one line per problem, each with the field's path.
    """
    try:
        return ExperimentConfig.model_validate(document, context={"folder": folder})
    except ValidationError as error:
        raise UserError("\n".join(explain(error, ExperimentConfig))) from None


def section(kind: type[SectionT], settings: Mapping[str, Any], name: str) -> SectionT:
    """Validate one section of settings, which comes from arguments of a function.

    Args:
        kind: class of the section.
        settings: its fields.
        name: begin of each problem's path.

    Raises:
        UserError: one line per problem.
    """
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        raise UserError("\n".join(explain(error, kind, section=name))) from None


def override(config: ExperimentConfig, overrides: Overrides) -> ExperimentConfig:
    """Return the recipe with some settings changed."""
    document = config.model_dump(mode="json", exclude_none=True, context=KEEP_PASSWORDS)
    apply_overrides(document, overrides)
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


def apply_overrides(document: dict[str, Any], overrides: Overrides) -> None:
    """Change nested settings in place.

    Raises:
        UserError: an override is no ``a.b=value``, or its path leads through a value.
    """
    for address, value in _items(overrides):
        _set(document, address, value)


def _items(overrides: Overrides) -> Iterable[tuple[str, Any]]:
    return overrides.items() if isinstance(overrides, Mapping) else map(_parse, overrides)


def _parse(text: str) -> tuple[str, Any]:
    """Split ``a.b=value`` into the dotted path and the value, which is read as YAML."""
    address, equals, value = text.partition("=")
    if not equals or not address:
        raise UserError(f"{text!r} is not an override; write a.b=value")
    try:
        parsed = parse_yaml(value)
    except yaml.YAMLError as error:
        raise UserError(f"{address}: {value!r} is not a YAML value ({error})") from None
    return address, _number(parsed) if isinstance(parsed, str) else parsed


def _set(document: dict[str, Any], address: str, value: Any) -> None:
    """Set the value at a dotted path in a nested document; numbers address the items of lists."""
    if not isinstance(address, str):
        raise UserError(f"{address!r} is no dotted path of a setting; give a text such as 'sampling.eta'")
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
    if not (key.isascii() and key.isdigit()) or len(key) > 9 or int(key) >= len(items):
        raise UserError(f"{address}: {key!r} is no item of a list of {len(items)}")
    return int(key)


def explain(error: ValidationError, model: type[BaseModel], *, section: str = "") -> Iterator[str]:
    """Yield one line per problem, which begins with the path of the setting.

    Args:
        error: pydantic's error.
        model: the validated model.
        section: path in the recipe of the validated settings; empty for the whole recipe.
    """
    problems = error.errors(include_url=False)
    sections = {problem["loc"][:depth] for problem in problems for depth in range(len(problem["loc"]))}
    fields = [problem for problem in problems if problem["loc"] not in sections]
    for problem in islice(fields, MAX_PROBLEMS):  # a section is refused only because of a field in it
        path = ".".join([section] * bool(section) + _address(problem["loc"], model)) or "recipe"
        yield f"{path}: {_message(problem, model)}"
    if len(fields) > MAX_PROBLEMS:
        yield f"{len(fields) - MAX_PROBLEMS} more settings are refused; correct these first"


def _address(location: Iterable[int | str], model: type[BaseModel]) -> list[str]:
    """Return the keys of a location, without the names that pydantic adds for the types of a union."""
    keys, is_union = list[str](), False
    section: Any = model
    for part in location:
        if isinstance(part, str) and is_union:
            continue
        keys.append(key if (key := str(part)).isprintable() else repr(key)[1:-1])
        if section is not None and part in section.model_fields:
            annotation = section.model_fields[str(part)].annotation
            is_union = isinstance(annotation, UnionType) and len({*get_args(annotation)} - {NoneType}) > 1
            section = _section_of(annotation)
    return keys


def _message(problem: Any, model: type[BaseModel]) -> str:
    if problem["type"] == "extra_forbidden":
        *parents, name = problem["loc"]
        known = _siblings(parents, model)
        nearest = did_you_mean(str(name), known)
        return f"there is no such setting; {nearest}here are {', '.join(known)}"
    if problem["type"] == "missing":
        return "is required"
    if problem["type"] == "value_error":
        return str(problem["msg"]).removeprefix("Value error, ")
    return f"{problem['msg']}, not {_shown(problem['input'])}"


def _shown(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > 3 * LONGEST_SHOWN:
        return f"a number of {value.bit_length()} bits"
    short = Repr()
    short.maxstring = short.maxother = short.maxlong = LONGEST_SHOWN
    return short.repr(value)


def _siblings(parents: Iterable[int | str], model: type[BaseModel]) -> list[str]:
    """Names of the settings of the section with this address."""
    section: Any = model
    for part in parents:
        if isinstance(part, str):
            section = _section_of(section.model_fields[part].annotation)
    return sorted(section.model_fields)


def _section_of(annotation: Any) -> Any:
    """Return the section in the annotation of a field: itself, an optional one, or each item of a tuple."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section_of, get_args(annotation))), None)
