"""Find rewards by name, check their options and load them.

A file of this folder is a reward: ``hps.py`` is the reward ``hps``. It defines one class whose name ends in ``Reward``; the
keyword arguments of this class are the reward's options in a recipe. A dotted name reaches a reward outside the package:

- ``my.module``: the only class that the module defines and whose name ends in ``Reward``;
- ``my.module.ClassName``: that class;
- ``my.module.my_function``: a plain function ``f(frames, prompts) -> scores``, which sees whole clips and has no options.
"""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from pathlib import Path
from types import FunctionType
from typing import Any, cast

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from torch import nn

from vader_ray import types
from vader_ray.config import ConfigError, RewardConfig
from vader_ray.plugins import Registry
from vader_ray.rewards.core.contract import check_contract, check_measure
from vader_ray.rewards.core.function import function_reward

__all__ = [
    "build",
    "build_measure",
    "check",
    "check_contract",
    "check_measure",
    "is_measure",
    "load",
    "names",
    "resolve",
]


_REWARDS = Registry("vader_ray.rewards", kind="Reward", noun="reward")


def names() -> list[str]:
    """Return the names of the rewards of this package."""
    return _REWARDS.names()


def resolve(name: str) -> type:
    """Return the class of a reward; a plain function is wrapped in a class of its own.

    Raises:
        ConfigError: there is no such reward; the message gives the rule and the names.
    """
    found = _REWARDS.resolve(name)
    if isinstance(found, FunctionType):
        return function_reward(found)
    if not isinstance(found, type):
        raise ConfigError(f"reward: {name} is a {type(found).__name__}; name a class or a function")
    return found


def check(spec: RewardConfig, *, folder: Path | None = None) -> RewardConfig:
    """The same setting with every local path made absolute (a relative one starts at ``folder``); loads no weights.

    Raises:
        ConfigError: unknown reward, unknown option, an option of the wrong type or a path that does not exist; one line each.
    """
    return spec.model_copy(update=_options(spec, resolve(spec.reward), folder))


def build(spec: RewardConfig, *, device: torch.device | str) -> types.Reward:
    """The reward with its weights; its networks are frozen, in eval mode and on ``device``, in the precision of ``spec``.

    Raises:
        ConfigError: as `check`, and weights that are missing, unreadable or of another network.
    """
    if is_measure(spec.reward):
        raise ConfigError(
            f"{spec.name} compares videos with one another and can only be evaluated; move it to eval_rewards"
        )
    return cast(types.Reward, load(spec, device=device))


def build_measure(spec: RewardConfig, *, device: torch.device | str) -> types.SetMeasure:
    """The measure of a set of videos, as `build` does it for a reward; ``spec`` must name one (`is_measure`)."""
    assert is_measure(spec.reward), spec.reward
    return cast(types.SetMeasure, load(spec, device=device))


def is_measure(name: str) -> bool:
    """Whether the name is that of a `SetMeasure`: one that can be evaluated and not trained."""
    return getattr(resolve(name), "granularity", None) == "set"


def load(spec: RewardConfig, *, device: torch.device | str) -> object:
    """The reward or the measure that ``spec`` names, as `build` does it."""
    reward_class = resolve(spec.reward)
    options = _options(spec, reward_class, None)
    meta = torch.device(device).type == "meta"  # its networks are then made without weights
    try:
        with torch.device(device) if meta else nullcontext():
            reward = reward_class(**options)
    except ConfigError as error:
        raise ConfigError(f"{spec.name}: {error}") from error.__cause__
    if isinstance(reward, nn.Module):
        reward.to(device=device, dtype=getattr(torch, spec.precision)).requires_grad_(False).eval()
    built: object = reward
    return built


def _options(spec: RewardConfig, reward_class: type, folder: Path | None) -> dict[str, Any]:
    """The options that were given, validated against the annotations of the class's ``__init__``."""
    model = _option_model(spec.name, reward_class)
    try:
        options = model.model_validate(spec.options, context={"folder": folder})
    except ValidationError as error:
        raise ConfigError(
            "\n".join(_explain(spec.name, model, problem) for problem in error.errors())
        ) from None
    return {name: getattr(options, name) for name in options.model_fields_set}


def _option_model(name: str, reward_class: type) -> type[BaseModel]:
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(reward_class, eval_str=True).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.name in RewardConfig.model_fields:
            raise ConfigError(
                f"{name}: its option {parameter.name!r} is a setting of every reward; rename it in the class"
            )
        annotation = Any if parameter.annotation is parameter.empty else parameter.annotation
        fields[parameter.name] = (
            annotation,
            ... if parameter.default is parameter.empty else parameter.default,
        )
    settings = ConfigDict(extra="forbid", protected_namespaces=(), arbitrary_types_allowed=True)
    return create_model(
        f"{reward_class.__module__}.{reward_class.__qualname__}", __config__=settings, **fields
    )


def _explain(name: str, model: type[BaseModel], problem: Any) -> str:
    option = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return f"{name}: there is no option {option!r}; it has {', '.join(sorted(model.model_fields)) or 'no options'}"
    if problem["type"] == "missing":
        return f"{name}.{option}: is required"
    if "Value error" not in problem["msg"]:
        message = f"{message}, not {problem['input']!r}"
    return f"{name}.{option}: {message}"
