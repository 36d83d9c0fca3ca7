"""Plain functions as rewards."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

from vader_ray.errors import UserError
from vader_ray.types import Frames, Granularity, Scores


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

    def __init__(self, function: Callable[[Frames, Sequence[str]], Scores]) -> None:
        _check_signature(function)
        self.function = function

    def __call__(self, frames: Frames, prompts: Sequence[str], /) -> Scores:
        """Return one score per video."""
        return self.function(frames, prompts)


def function_reward(function: Callable[[Frames, Sequence[str]], Scores]) -> type[FunctionReward]:
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
