"""The guard against reward hacking: it fires when an untrained metric becomes worse by more than a bound.

Its memory is part of the run's state, so a resumed run fires at the same step as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from statistics import fmean

from vader_ray import metrics
from vader_ray.config import ExperimentConfig, GuardConfig
from vader_ray.errors import UserError, did_you_mean
from vader_ray.metrics.core.statistics import standard_error
from vader_ray.training.checkpoint import State
from vader_ray.training.evaluation import Evaluation

UNITS = {
    "standard_errors": "standard errors of the paired difference",
    "absolute": "in its own unit",
    "relative": "of it",
}
"""Units of the bound in messages."""


def check_guard(config: ExperimentConfig) -> None:
    """Refuse a guard that compares a metric that is never measured, or one whose bound has no scale.

    Raises:
        UserError: names the metric and the remedy.
    """
    measured = metrics.measured_metrics(config)
    known = [*config.reward_metrics(), *measured]
    if unknown := [metric for metric in config.guard.metrics if metric not in known]:
        nearest = did_you_mean(unknown[0], known)
        raise UserError(
            f"guard.metrics: {unknown[0]!r} is never measured; {nearest}choose of {', '.join(known)}"
        )
    zero_at_start = [
        metric
        for metric in config.guard.metrics
        if metric in measured and hasattr(measured[metric], "compare_with_base")
    ]
    if config.guard.unit != "absolute" and zero_at_start:
        raise UserError(
            f"guard.unit: {zero_at_start[0]} starts at 0, so its bound cannot be {config.guard.unit}; "
            "set guard.unit=absolute"
        )


def apply_guard(
    config: ExperimentConfig, evaluation: Evaluation, state: State
) -> tuple[dict[str, float], list[str]]:
    """Compare the guard's metrics with their reference; return numbers to log, and a message for each fall.

    Logged for each metric: its fall ``guard/fall/…`` (positive is worse) and whether it has been beyond the
    bound for ``patience`` evaluations in a row (``guard/beyond/…``, 0 or 1); and whether any has
    (``guard/fired``). A message comes at the last of these evaluations, and again only after a recovery.

    Updates ``state.guard_over``, the steps of the latest evaluations beyond the bound; if the guard ends the
    run, also ``state.stopped``.
    """
    logged: dict[str, float] = {}
    messages: list[str] = []
    for metric in config.guard_metrics():
        since, reference = _reference(config.guard, metric, state, evaluation)
        now, sign = evaluation.values(metric), evaluation.sign(metric)
        differences = [sign * (before - after) for before, after in zip(reference, now, strict=True)]
        amount = fall(config.guard, differences, reference)
        is_beyond = not amount <= config.guard.bound  # NaN is beyond every bound
        steps = [*state.guard_over.get(metric, ()), state.step] if is_beyond else []
        state.guard_over[metric] = steps
        name = metric.removeprefix("eval/")
        logged[f"guard/fall/{name}"] = fmean(differences)
        logged[f"guard/beyond/{name}"] = float(len(steps) >= config.guard.patience)
        if len(steps) == config.guard.patience:
            moved = "rose" if sign < 0 else "fell"
            change = f"{metric} {moved} to {fmean(now):.4f} from {_origin(since)} {fmean(reference):.4f}"
            messages.append(f"guard: {change} {_bound_and_steps(config.guard, amount, steps)}")
    if config.guard_metrics():
        logged["guard/fired"] = max(
            value for name, value in logged.items() if name.startswith("guard/beyond/")
        )
    if messages and config.guard.action == "stop" and state.step < config.num_steps:
        state.stopped = "; ".join(messages)
    return logged, messages


def is_over(state: State) -> bool:
    """Whether a metric was beyond its bound in the last evaluation: such an adapter is never the best."""
    return any(state.guard_over.values())


def exceeds(value: float, best: float) -> bool:
    """Whether a value is finite and higher than the best one so far, or the first finite one."""
    return isfinite(value) and not (isfinite(best) and value <= best)


def nonfinite_metrics(config: ExperimentConfig, metrics: Mapping[str, float], step: int) -> list[str]:
    """Return one message per reward or guarded metric of an evaluation that is NaN or infinite."""
    names = dict.fromkeys((*config.reward_metrics(), *config.guard_metrics()))
    return [
        f"{name} is {metrics[name]} in the evaluation of step {step}, which counts as worse than any number"
        for name in names
        if not isfinite(metrics[name])
    ]


def fall(guard: GuardConfig, differences: Sequence[float], reference: Sequence[float]) -> float:
    """Return the mean paired difference in the bound's unit; infinite if it is positive and the unit is 0."""
    mean = fmean(differences)
    scale = {
        "absolute": 1.0,
        "relative": abs(fmean(reference)),
        "standard_errors": standard_error(differences),
    }[guard.unit]
    return mean / scale if scale else float("inf") if mean > 0 else 0.0


def _reference(
    guard: GuardConfig, metric: str, state: State, evaluation: Evaluation
) -> tuple[int, list[float]]:
    """Step and values of the evaluation that a metric is compared with: the base model's, or its best one."""
    now, known = evaluation.values(metric), state.guard_reference.get(metric)
    sign = evaluation.sign(metric)
    is_better = known is not None and exceeds(sign * fmean(now), sign * fmean(known))
    if known is None or (guard.reference == "best" and is_better):
        state.guard_reference[metric], state.guard_reference_step[metric] = now, state.step
    return state.guard_reference_step[metric], state.guard_reference[metric]


def _origin(since: int) -> str:
    return "the base model's" if since == 0 else f"its best at step {since},"


def _bound_and_steps(guard: GuardConfig, amount: float, steps: Sequence[int]) -> str:
    bound = f"({amount:.3g} {UNITS[guard.unit]}, the bound is {guard.bound:g})"
    if len(steps) == 1:
        return f"{bound} at the evaluation of step {steps[0]}"
    return f"{bound} at those of steps {', '.join(map(str, steps))}"
