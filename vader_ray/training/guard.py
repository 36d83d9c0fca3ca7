"""The guard: it notices when a held-out measure falls while the trained rewards rise.

What it knows lies in the run's state, so a resumed run fires where the straight one does.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from vader_ray.config import ExperimentConfig, GuardConfig
from vader_ray.training.checkpoint import State
from vader_ray.training.evaluation import Evaluation, standard_error

UNITS = {
    "standard_errors": "standard errors of the paired difference",
    "absolute": "in its own unit",
    "relative": "of it",
}


def watch(
    config: ExperimentConfig, evaluation: Evaluation, state: State
) -> tuple[dict[str, float], list[str]]:
    """Metrics, and a message for each measure that fires here.

    The metrics are each measure's fall ``guard/fall/…`` (positive is worse), whether it has been beyond the bound for
    ``patience`` evaluations in a row (``guard/beyond/…``), and whether any has (``guard/fired``). The message comes at the
    last of these evaluations, and again only after a recovery.
    ``state.guard_over`` then holds the steps of those evaluations, ``state.stopped`` why the run ends.
    """
    metrics: dict[str, float] = {}
    messages: list[str] = []
    for measure in config.guard_metrics():
        now, (since, reference) = (
            evaluation.values(measure),
            _reference(config.guard, measure, state, evaluation),
        )
        sign = -1.0 if measure in config.guard.LOWER_IS_BETTER else 1.0
        differences = [sign * (before - after) for before, after in zip(reference, now, strict=True)]
        amount = fall(config.guard, differences, reference)
        steps = [*state.guard_over.get(measure, ()), state.step] if amount > config.guard.bound else []
        state.guard_over[measure] = steps
        metrics[f"guard/fall/{measure.removeprefix('eval/')}"] = fmean(differences)
        metrics[f"guard/beyond/{measure.removeprefix('eval/')}"] = float(len(steps) >= config.guard.patience)
        if len(steps) == config.guard.patience:
            messages.append(_message(config, measure, fmean(now), fmean(reference), since, amount, steps))
    if config.guard_metrics():
        metrics["guard/fired"] = max(
            value for name, value in metrics.items() if name.startswith("guard/beyond/")
        )
    if messages and config.guard.action == "stop" and state.step < config.num_steps:
        state.stopped = "; ".join(messages)
    return metrics, messages


def is_over(state: State) -> bool:
    """Whether a measure was beyond its bound at the last evaluation: such an adapter never becomes the best."""
    return any(state.guard_over.values())


def fall(guard: GuardConfig, differences: Sequence[float], reference: Sequence[float]) -> float:
    """The mean of the paired differences in the unit of the bound; infinite when any fall is beyond every bound."""
    mean = fmean(differences)
    scale = {
        "absolute": 1.0,
        "relative": abs(fmean(reference)),
        "standard_errors": standard_error(differences),
    }[guard.unit]
    return mean / scale if scale else float("inf") if mean > 0 else 0.0


def _reference(
    guard: GuardConfig, measure: str, state: State, evaluation: Evaluation
) -> tuple[int, list[float]]:
    """Step and values that the measure is compared with: the base model's, or the best of the evaluations so far."""
    now, known = evaluation.values(measure), state.guard_reference.get(measure)
    if known is None or (
        guard.reference == "best" and measure not in guard.LOWER_IS_BETTER and fmean(now) > fmean(known)
    ):
        state.guard_reference[measure], state.guard_reference_step[measure] = now, state.step
    return state.guard_reference_step[measure], state.guard_reference[measure]


def _message(
    config: ExperimentConfig,
    measure: str,
    value: float,
    reference: float,
    since: int,
    amount: float,
    steps: Sequence[int],
) -> str:
    guard, moved = config.guard, "rose" if measure in config.guard.LOWER_IS_BETTER else "fell"
    compared = "the base model's" if since == 0 else f"its best at step {since},"
    bound = f"{amount:.3g} {UNITS[guard.unit]}, the bound is {guard.bound:g}"
    seen = (
        f"at the evaluation of step {steps[0]}"
        if len(steps) == 1
        else f"at those of steps {', '.join(map(str, steps))}"
    )
    return f"guard: {measure} {moved} to {value:.4f} from {compared} {reference:.4f} ({bound}) {seen}"
