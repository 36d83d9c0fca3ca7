"""The guard against reward hacking: it fires when an untrained metric has become worse, by a sequential test.

Each evaluation spends an equal share of the false-alarm rate (alpha spending: Lan and DeMets 1983,
"Discrete sequential boundaries for clinical trials", Biometrika 70), each metric an equal share of that
(Bonferroni). The test of a metric compares the evaluation with all earlier ones at once (`fall_test`). By the
union bound, the probability of any false alarm in a run is at most the rate, however the evaluations are
correlated.

The guard's memory is part of the run's state, so a resumed run fires at the same step as an uninterrupted
one.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from statistics import fmean

import numpy as np

from vader_ray import metrics
from vader_ray.config import ExperimentConfig
from vader_ray.errors import UserError, did_you_mean
from vader_ray.metrics.core.statistics import fall_test
from vader_ray.training.checkpoint import State
from vader_ray.training.evaluation import Evaluation
from vader_ray.training.seeding import derive_seed


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
    """Test the guard's metrics for a fall; return numbers to log, and a message for each metric that fell.

    Logged for each metric: its fall ``guard/fall/…`` (positive is worse) from the evaluation from which it is
    most significant, the p-value ``guard/p_value/…`` of all comparisons together, and whether the guard fires
    for it (``guard/beyond/…``, 0 or 1); and whether it does for any (``guard/fired``). A message comes at the
    first of several such evaluations in a row.

    Updates the guard's fields of ``state``; if the guard ends the run, also ``state.stopped``.
    """
    names = config.guard_metrics()
    if not names:
        return {}, []
    level = _spend(config, state) / len(names)
    logged: dict[str, float] = {}
    messages: list[str] = []
    beyond = []
    for metric in names:
        amount, p_value, message = _compare(config, metric, evaluation, state)
        is_beyond = p_value <= level
        name = metric.removeprefix("eval/")
        logged |= {f"guard/fall/{name}": amount, f"guard/p_value/{name}": p_value}
        logged[f"guard/beyond/{name}"] = float(is_beyond)
        if is_beyond:
            beyond.append(metric)
        if is_beyond and metric not in state.guard_beyond:
            messages.append(
                f"{message} (p = {p_value:.2g}, this evaluation's share of the rate is {level:.2g})"
            )
    state.guard_beyond = beyond
    logged["guard/fired"] = float(bool(beyond))
    if messages and config.guard.action == "stop" and state.step < config.num_steps:
        state.stopped = "; ".join(messages)
    return logged, messages


def evaluation_share(config: ExperimentConfig, step: int, spent: float) -> float:
    """Return the part of the false-alarm rate that the evaluation at a step spends.

    Args:
        spent: what the evaluations before it have spent.
    """
    every, last = config.evaluation.every, config.num_steps
    num_left = len({*range(-(-step // every) * every, last, every), last})
    return (config.guard.false_alarm_rate - spent) / (num_left + 1)


def cannot_fire(config: ExperimentConfig) -> str | None:
    """Return why the guard can never fire; None if it can.

    With few prompts even a fall of every one of them is too likely by chance.
    """
    names = config.guard_metrics()
    num_prompts = min(len(set(config.prompts.validation)), config.evaluation.num_videos)
    if not names:
        return None
    level = evaluation_share(config, config.evaluation.every, 0.0) / len(names)
    if 2.0**-num_prompts <= level:
        return None
    needed = int(np.ceil(-np.log2(level)))
    return (
        f"the guard cannot fire: on {num_prompts} validation prompts no fall is significant at its rate; "
        f"evaluate at least {needed} prompts (prompts.validation, evaluation.num_videos), less often, or "
        "fewer guard.metrics"
    )


def _spend(config: ExperimentConfig, state: State) -> float:
    """Return this evaluation's share of the false-alarm rate, and spend it."""
    if state.step == 0:
        return 0.0
    share = evaluation_share(config, state.step, state.guard_spent)
    state.guard_spent += share
    return share


def _compare(
    config: ExperimentConfig, metric: str, evaluation: Evaluation, state: State
) -> tuple[float, float, str]:
    """Return a metric's fall, its p-value and a message about it; keep the values for later evaluations.

    A metric that is not finite has fallen for certain, and no later evaluation is compared with it.
    """
    now, sign = evaluation.prompt_values[metric], evaluation.sign(metric)
    earlier = state.guard_values.setdefault(metric, {})
    moved = f"guard: {metric} {'rose' if sign < 0 else 'fell'} to {fmean(now):.4f}"
    if not np.isfinite(now).all():
        return float("nan"), 0.0, moved
    if not earlier:
        earlier[str(state.step)] = now
        return 0.0, 1.0, moved
    before = np.array(list(earlier.values()))
    means = before.mean(axis=1)
    falls = sign * (before - np.array(now))
    unit = {
        "absolute": np.ones_like(means),
        "relative": abs(means),
        "effect_size": before.std(axis=1, ddof=min(1, before.shape[1] - 1)),
    }[config.guard.unit]
    random = np.random.default_rng(derive_seed(config.seed, "guard", state.step))
    p_value, index = fall_test(falls - config.guard.bound * unit[:, None], random)
    since = list(earlier)[index]
    if config.guard.reference == "any":
        earlier[str(state.step)] = now
    origin = "the base model's" if since == "0" else f"that of step {since},"
    return float(falls[index].mean()), p_value, f"{moved} from {origin} {means[index]:.4f}"


def is_over(state: State) -> bool:
    """Whether the guard fired in the last evaluation: such an adapter is never the best."""
    return bool(state.guard_beyond)


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
