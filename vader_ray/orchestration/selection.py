"""Rules by which runs are compared: which may be the best, and which are on the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

INTERPOLATED = "interpolated"
"""Swept name, and MLflow tag, of a run that evaluates the interpolated adapters of other trials and trains
nothing."""


def is_eligible(status: str, stopped_by_guard: bool) -> bool:
    """Return whether a run may be the best one: it took all its steps, or its guard stopped it.

    A trial that the scheduler stopped had fallen behind, and is not compared with those that went on.
    """
    return status == "completed" or (status == "stopped" and stopped_by_guard)


def pareto_front(scores: Mapping[str, Sequence[float]]) -> list[str]:
    """Return the names that no other dominates: none is at least equal in all scores and higher in one."""

    def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
        pairs = list(zip(one, other, strict=True))
        return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)

    return [
        name for name, own in scores.items() if not any(dominates(other, own) for other in scores.values())
    ]
