"""Choice of the gradient steps of a training step: truncated backpropagation through sampling."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from vader_ray.alignment import backward_paths
from vader_ray.alignment.backward_paths import BackwardPath, PathContext
from vader_ray.config import TRUNCATIONS, GradientStepConfig, SamplingConfig
from vader_ray.errors import UserError, explain_plugin_errors
from vader_ray.plugins import import_attribute
from vader_ray.types import GradStep, SamplingSchedule, TruncationPlan


def draw_plan(
    sampling: SamplingConfig,
    generator: torch.Generator,
    schedule: Callable[[], SamplingSchedule] | None = None,
) -> TruncationPlan:
    """Choose the gradient steps of one training step and their factors.

    Args:
        sampling: the recipe's settings.
        generator: source of all random choices.
        schedule: returns the scheduler's coefficients and noise levels; None where no path needs them.

    Raises:
        UserError: an option does not fit, or the function of the user returned no valid path.
    """
    assert sampling.recompute != "auto", "chosen before a run"
    context = PathContext(sampling.num_inference_steps, sampling.truncation_depth, generator, schedule)
    with explain_plugin_errors(f"sampling.truncation {sampling.truncation!r}"):
        path = _path(sampling)(context)
    _check_path(path, sampling)
    return TruncationPlan(
        num_inference_steps=sampling.num_inference_steps,
        grad_steps=tuple(path.steps),
        rules=tuple(path.steps.values()),
        base_adjoint=path.base_adjoint,
        reward_step=path.reward_step,
        distances=path.distances,
        min_distance=path.min_distance,
        recompute=sampling.recompute,
        num_endings=sampling.num_endings,
        num_clips=sampling.num_clips,
        num_gradient_clips=sampling.num_gradient_clips(),
    )


def check_plan(sampling: SamplingConfig, generator: torch.Generator | None = None) -> TruncationPlan:
    """Check the choice of the gradient steps and its options; return a plan for a schedule of equal steps.

    Args:
        sampling: the recipe's settings.
        generator: source of all random choices; the gradient steps are those of `draw_plan` with the same
            one.

    Raises:
        UserError: as `draw_plan`, and for an option that the choice does not have.
    """
    num_steps = sampling.num_inference_steps
    equal = SamplingSchedule(
        (-1 / num_steps,) * num_steps, tuple(1 - k / num_steps for k in range(num_steps))
    )
    checked = sampling.model_copy(update={"recompute": True})
    return draw_plan(checked, generator or torch.Generator().manual_seed(0), lambda: equal)


def _path(sampling: SamplingConfig) -> Callable[[PathContext], BackwardPath]:
    """Return the function of the context that chooses the gradient steps."""
    if not isinstance(sampling.truncation, str):
        return partial(_listed, sampling.truncation)
    function = (
        getattr(backward_paths, sampling.truncation)
        if sampling.truncation in TRUNCATIONS
        else import_attribute(sampling.truncation, "sampling.truncation")
    )
    known = {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    if unknown := sorted(sampling.truncation_options.keys() - known.keys()):
        raise UserError(
            f"sampling.truncation_options: {sampling.truncation} has no option {', '.join(unknown)}; it has "
            f"{', '.join(known) or 'none'}"
        )
    options = {name: _number(name, given, known[name]) for name, given in sampling.truncation_options.items()}
    return partial(function, **options)


def _number(name: str, given: float, default: Any) -> int | float:
    """Return an option as an integer if its default is one, else as a float.

    Raises:
        UserError: an integer is expected, and the number is none.
    """
    if not isinstance(default, int):
        return float(given)
    if given != int(given):
        raise UserError(f"sampling.truncation_options.{name}={given}: give an integer")
    return int(given)


def _listed(steps: tuple[GradientStepConfig, ...], _: PathContext) -> BackwardPath:
    """Return the path of a list in the recipe."""
    return BackwardPath(
        {each.step: GradStep(each.coupling, each.gain, each.prior) for each in steps},
        reward_step=next((each.step for each in steps if each.reward_at_prediction), None),
    )


def _check_path(path: Any, sampling: SamplingConfig) -> None:
    """Check what a function returned.

    Raises:
        UserError: it is no path of this sampling.
    """
    name, num_steps = f"sampling.truncation {sampling.truncation!r}", sampling.num_inference_steps
    if not isinstance(path, BackwardPath):
        raise UserError(f"{name} returned a {type(path).__name__}; return a BackwardPath")
    steps = list(path.steps)
    end = num_steps - 1 if path.reward_step is None else path.reward_step
    if not steps or steps != sorted(steps) or not 0 <= steps[0] <= steps[-1] <= end < num_steps:
        raise UserError(
            f"{name} chose the gradient steps {steps} with the reward at {end}; choose one or more, "
            f"ascending, from 0 to the step of the reward, which is at most {num_steps - 1}"
        )
