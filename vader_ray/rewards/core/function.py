"""Plain functions as rewards: reached by a dotted name, or given in Python and registered under a name."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

from vader_ray.errors import UserError
from vader_ray.types import Frames, Granularity, Scores

RewardFunction: TypeAlias = Callable[[Frames, Sequence[str]], Scores]
"""Takes frames ``batch frames 3 height width`` in [0, 1] and one prompt per video; returns one score per
video."""

_PREFIX = "function:"
_REGISTERED: dict[str, RewardFunction] = {}
"""Functions given in Python, by the name under which a recipe mentions them."""


def register_function(function: RewardFunction) -> str:
    """Make a function known to this process as a reward; return the name for a recipe's ``reward``.

    The name holds a hash of the function's source, so a run is continued only with the same function.

    Raises:
        UserError: the function cannot be called with two positional arguments.
    """
    _check_signature(function)
    name = f"{_PREFIX}{function.__name__}@{_digest(function)}"
    _REGISTERED[name] = function
    return name


def register_functions(functions: Mapping[str, RewardFunction]) -> None:
    """Make functions known that another process of the run has registered."""
    _REGISTERED.update(functions)


def registered_functions(names: Iterable[str]) -> dict[str, RewardFunction]:
    """Return those of the names that are registered functions, with their functions: for other processes of
    a run."""
    return {name: _REGISTERED[name] for name in names if name in _REGISTERED}


def find_function(name: str) -> RewardFunction | None:
    """Return the registered function of this name; None for a name that is not that of a registered function.

    Raises:
        UserError: the name is that of a function given in Python, and this process does not have it.
    """
    if name.startswith(_PREFIX) and name not in _REGISTERED:
        raise UserError(
            f"reward: {name!r} is a function that was given in Python; "
            "start the run by vader_ray.train(rewards=...), "
            "or put the function in a module and write its dotted name"
        )
    return _REGISTERED.get(name)


def _digest(function: RewardFunction) -> str:
    try:
        text = inspect.getsource(function).encode()
    except (OSError, TypeError):
        text = getattr(function, "__code__", function.__class__.__call__.__code__).co_code
    return hashlib.sha256(text).hexdigest()[:8]


class FunctionReward:
    """A plain function ``f(frames, prompts) -> scores`` as a reward that sees whole clips.

    Args:
        function: takes frames ``batch frames 3 height width`` in [0, 1] and one prompt per video, and returns
            one score per video, differentiable in the frames.

    Raises:
        UserError: the function cannot be called with two positional arguments.
    """

    granularity: Granularity = "clip"
    unit = "not stated"
    default_weights = ""
    licence = ""

    def __init__(self, function: RewardFunction) -> None:
        _check_signature(function)
        self.function = function

    def __call__(self, frames: Frames, prompts: Sequence[str], /) -> Scores:
        """Return one score per video."""
        return self.function(frames, prompts)


def function_reward(function: RewardFunction) -> type[FunctionReward]:
    """Return a class without options whose instances call the function, for the registry of rewards."""

    _check_signature(function)

    class _NamedFunctionReward(FunctionReward):
        def __init__(self) -> None:
            super().__init__(function)

    _NamedFunctionReward.__name__ = _NamedFunctionReward.__qualname__ = function.__name__
    _NamedFunctionReward.__module__ = function.__module__
    _NamedFunctionReward.__doc__ = function.__doc__
    return _NamedFunctionReward


def _check_signature(function: Callable[..., object]) -> None:
    try:
        inspect.signature(function).bind(None, ())
    except TypeError as error:
        raise UserError(
            f"the function {function.__qualname__} is no reward ({error}); its signature must be f(frames, "
            "prompts)"
        ) from None
