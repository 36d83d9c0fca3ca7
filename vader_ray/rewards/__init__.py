"""Find rewards by name, check their options and load them.

A file of this folder is a reward: ``hps.py`` is the reward ``hps``. It defines one class whose name ends in
``Reward``; the keyword arguments of this class are the reward's options in a recipe. A dotted name reaches a
reward outside the package:

- ``my.module``: the only class that the module defines and whose name ends in ``Reward``;
- ``my.module.ClassName``: that class;
- ``my.module.my_function``: a plain function ``f(frames, prompts) -> scores``, which sees whole clips and has
  no options.
"""

from __future__ import annotations

from pathlib import Path
from types import FunctionType
from typing import cast

import torch

from vader_ray import types
from vader_ray.config import RewardConfig
from vader_ray.errors import UserError
from vader_ray.plugin_options import check_options, load_plugin
from vader_ray.plugins import REWARDS
from vader_ray.rewards.core.contract import check_contract
from vader_ray.rewards.core.function import (
    FunctionReward,
    RewardFunction,
    find_function,
    function_reward,
    register_function,
    register_functions,
    registered_functions,
)

__all__ = [
    "FunctionReward",
    "RewardFunction",
    "build",
    "check",
    "check_contract",
    "names",
    "register_function",
    "register_functions",
    "registered_functions",
    "resolve",
]


def names() -> list[str]:
    """Return the names of the rewards of this package."""
    return REWARDS.names()


def resolve(name: str) -> type:
    """Return the class of a reward; a plain function is wrapped in a class of its own.

    Raises:
        UserError: there is no such reward; the message gives the rule and the names.
    """
    found = find_function(name) or REWARDS.resolve(name)
    if isinstance(found, FunctionType):
        return function_reward(found)
    if not isinstance(found, type):
        raise UserError(f"reward: {name} is a {type(found).__name__}; name a class or a function")
    return found


def check(spec: RewardConfig, *, folder: Path | None = None) -> RewardConfig:
    """Return the setting with absolute paths after checking its options; loads no weights.

    Relative paths start at ``folder``.

    Raises:
        UserError: unknown reward, unknown option, an option of the wrong type or a path that does not
            exist; one line each.
    """
    return spec.model_copy(update=check_options(resolve(spec.reward), spec, folder))


def build(spec: RewardConfig, *, device: torch.device | str) -> types.Reward:
    """Load a reward; its networks are frozen, in eval mode and on ``device``, in the precision of ``spec``.

    Raises:
        UserError: as `check`, and weights that are missing, unreadable or of another network.
    """
    return cast(types.Reward, load_plugin(resolve(spec.reward), spec, device=device))
