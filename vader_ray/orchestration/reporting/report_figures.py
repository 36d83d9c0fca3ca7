"""Figures of a report: reward curves, metrics, trade-offs and effects of settings, for groups of runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import inf, isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from vader_ray.config import is_metric_value
from vader_ray.metrics.core.statistics import standard_error
from vader_ray.orchestration.reporting import figures
from vader_ray.orchestration.reporting.figures import Point, Series
from vader_ray.orchestration.reporting.past_runs import PastRun, differing
from vader_ray.orchestration.selection import is_eligible, pareto_front

QUERIES, CALLS, SECONDS = "cost/reward_queries", "cost/denoiser_calls", "cost/train_seconds"
AXES = {
    QUERIES: "reward queries",
    CALLS: "denoiser calls",
    "cost/gpu_hours": "GPU hours of training steps",
    SECONDS: "seconds of training steps",
}
MAX_GROUPS = 12
"""Groups with a line in a figure of curves."""
MAX_FIELDS = 6
"""Differing fields whose effects are drawn."""
MAX_LABEL = 20
"""Characters of the longest value of a field that is drawn on an axis."""
MAX_FIELDS_IN_LABEL = 3
"""Fields in the label of a group; with more, the label is the name of its first run."""


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ in their seed only."""

    label: str
    """Text in legends."""
    runs: list[PastRun]
    """One run per seed."""

    def best(self, metric: str) -> float | None:
        """Return the mean of a metric over the best adapters of the runs."""
        values = [value for run in self.runs if (value := run.best(metric)) is not None]
        return fmean(values) if values else None

    @property
    def is_eligible(self) -> bool:
        """Whether all runs may be on the Pareto front."""
        return all(is_eligible(run.status, run.stopped_by_guard) for run in self.runs)


@dataclass(frozen=True)
class Drawn:
    """A figure in a page."""

    svg: str
    """SVG element."""
    name: str
    """Name of its files, without suffix."""
    caption: str
    """Sentence below the figure, also its text for screen readers."""
    chart: dict[str, Any] | None = None
    """The figure's data for the page's script, if its values can be read by pointing at it."""


def grouped(runs: Sequence[PastRun]) -> list[RunGroup]:
    """Group runs that differ in their seed only, in the order of their first run."""
    fields = [field for field in differing(runs) if field != "seed"]
    members: dict[tuple[str | None, ...], list[PastRun]] = {}
    for run in runs:
        members.setdefault(tuple(value_of(run, field) for field in fields), []).append(run)
    if len(members) == 1:
        return [RunGroup(runs[0].recipe_name or runs[0].name, list(runs))]
    few = len(fields) <= MAX_FIELDS_IN_LABEL
    groups = []
    for values, same in members.items():
        pairs = zip(fields, values, strict=True)
        label = ", ".join(f"{short(field)}={value}" for field, value in pairs if value)
        groups.append(RunGroup(label if few else same[0].name, same))
    return groups


def best_groups(groups: Sequence[RunGroup]) -> list[RunGroup]:
    """Return the `MAX_GROUPS` groups with the highest final objective, in their order."""

    def objective(group: RunGroup) -> float:
        values = [value for run in group.runs if (value := run.last("eval/objective")) is not None]
        return fmean(values) if values and isfinite(fmean(values)) else -inf

    highest = sorted(range(len(groups)), key=lambda index: objective(groups[index]), reverse=True)
    return [groups[index] for index in sorted(highest[:MAX_GROUPS])]


def value_of(run: PastRun, field: str) -> str | None:
    """Return a swept value of a run, else the value of a setting."""
    return run.swept.get(field, run.settings.get(field))


def short(field: str) -> str:
    """Return the last part of a dotted field, or the whole field if it has an index: ``rewards.0.weight``."""
    parts = field.split(".")
    return field if any(part.isdigit() for part in parts) else parts[-1]


def reward_names(runs: Sequence[PastRun]) -> tuple[list[str], list[str]]:
    """Return the rewards that any run trained, and those that no run trained."""
    trained = list(dict.fromkeys(name for run in runs for name in run.rewards))
    heldout = list(dict.fromkeys(name for run in runs for name in run.heldout))
    return trained, [name for name in heldout if name not in trained]


def draw_rewards(groups: Sequence[RunGroup], names: Sequence[str], folder: Path) -> Iterator[Drawn]:
    """Draw each reward against each cost."""
    for name in names:
        for axis, label in _axes(groups):
            unit = _unit(groups, f"eval/reward/{name}")
            caption = f"Mean {name}{unit} of the validation videos, against {label}."
            yield from _curves(groups, f"eval/reward/{name}", axis, label, name, caption, folder)


def draw_metrics(groups: Sequence[RunGroup], folder: Path) -> Iterator[Drawn]:
    """Draw every metric against reward queries, with its unit."""
    logged = {metric for group in groups for run in group.runs for metric in run.history}
    for metric in sorted(filter(is_metric_value, logged)):
        title = metric.removeprefix("eval/").replace("/", ": ").replace("_", " ")
        caption = f"{title[:1].upper()}{title[1:]}{_unit(groups, metric)}; mean of the validation videos."
        yield from _curves(groups, metric, QUERIES, AXES[QUERIES], title, caption, folder)


def _unit(groups: Sequence[RunGroup], metric: str) -> str:
    """Return the unit of a reward or metric in parentheses; empty if its run did not log it."""
    units = [run.units[metric] for group in groups for run in group.runs if metric in run.units]
    return f" ({units[0]})" if units else ""


def draw_trade_offs(groups: Sequence[RunGroup], folder: Path) -> Iterator[Drawn]:
    """Draw pairs of rewards: of all trained ones, or of the only trained and the first held-out one."""
    trained, heldout = reward_names([run for group in groups for run in group.runs])
    names = trained if len(trained) > 1 else [*trained, *heldout[:1]]
    if len(names) < 2 or len(groups) < 2:
        return
    front = set(pareto_front(_scores(groups, names)))
    for one, other in combinations(names[:4], 2):
        scores = [
            (group.label, group.best(f"eval/reward/{one}"), group.best(f"eval/reward/{other}"))
            for group in groups
        ]
        points = [
            Point(label, x, y, label in front) for label, x, y in scores if x is not None and y is not None
        ]
        if len(points) > 1:
            figure = figures.trade_off(points, title=f"{one} and {other}", x_label=one, y_label=other)
            front_of = f"the Pareto front of {', '.join(names)}"
            caption = f"Validation {one} and {other} of the best adapters. Filled: on {front_of}."
            yield drawn(figure, f"trade-off-{one}-{other}", caption, folder)


def draw_effects(groups: Sequence[RunGroup], folder: Path) -> Iterator[Drawn]:
    """Draw the first trained and the first held-out reward against each differing field, without soups.

    Fields with long values, such as lists of layers and prompts, are left out: they do not fit an axis.
    """
    runs = [run for group in groups for run in group.runs if not run.is_soup]
    trained, heldout = reward_names(runs)
    fields = [field for field in differing(runs) if field != "seed" and _fits_an_axis(runs, field)]
    for field in fields[:MAX_FIELDS]:
        for name in (*trained[:1], *heldout[:1]):
            found = [(value_of(run, field), run.last(f"eval/reward/{name}")) for run in runs]
            points = [(value, last) for value, last in found if value is not None and last is not None]
            if len({value for value, _ in points}) > 1:
                figure = figures.effect(points, title=f"{short(field)} → {name}", x_label=field, y_label=name)
                yield drawn(
                    figure,
                    f"effect-{field}-{name}",
                    f"Validation {name} after training, by {field}.",
                    folder,
                )


def _fits_an_axis(runs: Sequence[PastRun], field: str) -> bool:
    return all(len(str(value_of(run, field))) <= MAX_LABEL for run in runs)


def _curves(
    groups: Sequence[RunGroup],
    metric: str,
    axis: str,
    axis_label: str,
    title: str,
    caption: str,
    folder: Path,
) -> Iterator[Drawn]:
    lines = [line for group in groups if (line := series(group, metric, axis)).x]
    if not lines:
        return
    if any(line.marked for line in lines):
        caption += " Crosses: the guard fired."
    is_percent = _unit(groups, metric).startswith(" (share")
    if is_percent:
        lines = [_in_percent(line) for line in lines]
    name = f"{metric.removeprefix('eval/')}-{axis.removeprefix('cost/')}".replace("/", "-")
    y_label, y_range = (
        ("% of validation videos", figures.PERCENT)
        if is_percent
        else ("mean of validation videos", figures.AUTOMATIC)
    )
    yield draw_lines(
        lines, name, caption, folder, title=title, x_label=axis_label, y_label=y_label, y_range=y_range
    )


def draw_lines(lines: Sequence[Series], name: str, caption: str, folder: Path, **labels: Any) -> Drawn:
    """Draw curves for print and as data for the page's script.

    Args:
        name: of the figure's files, without suffix.
        caption: sentence below the figure.
        labels: title, labels of the axes and ``y_range``, as in `figures.curves`.
    """
    still = drawn(figures.curves(lines, **labels), name, caption, folder)
    return replace(still, chart=figures.chart(lines, **labels))


def _in_percent(line: Series) -> Series:
    y, low, high = ([100 * value for value in values] for values in (line.y, line.low, line.high))
    return replace(line, y=y, low=low, high=high)


def series(group: RunGroup, metric: str, axis: str) -> Series:
    """Return the means over seeds, with their band (`_band`), at every step that has both metrics."""
    steps = sorted({step for run in group.runs for step in run.history.get(metric, ())})
    x: list[float] = []
    y: list[float] = []
    low: list[float] = []
    high: list[float] = []
    marked: list[int] = []
    for step in steps:
        measured = [
            run
            for run in group.runs
            if step in run.history.get(metric, ()) and step in run.history.get(axis, ())
        ]
        if not measured:
            continue
        values = [run.history[metric][step] for run in measured]
        bounds = _band(measured, metric, step)
        if any(_fired(run, metric, step) for run in measured):
            marked.append(len(x))
        x.append(fmean(run.history[axis][step] for run in measured))
        y.append(fmean(values))
        low += [bounds[0]] if bounds else []
        high += [bounds[1]] if bounds else []
    complete = len(low) == len(x)
    return Series(group.label, x, y, low if complete else (), high if complete else (), marked)


def _band(runs: Sequence[PastRun], metric: str, step: int) -> tuple[float, float] | None:
    """Return mean ± standard error of the gain over seeds, or the interval of a single run's gain."""
    if len(runs) == 1:
        return _interval(runs[0], metric, step)
    mean, error = fmean(run.history[metric][step] for run in runs), _gain_error(runs, metric, step)
    return mean - error, mean + error


def _gain_error(runs: Sequence[PastRun], metric: str, step: int) -> float:
    """Return the standard error of the mean gain over the start.

    It is that of the gain, not of the value, because each seed has its own held-out noise.
    """
    return standard_error(
        [run.history[metric][step] - first for run in runs if (first := run.first(metric)) is not None]
    )


def _interval(run: PastRun, metric: str, step: int) -> tuple[float, float] | None:
    """Return the 95 % interval of the paired gain, added to the value before training."""
    name = metric.removeprefix("eval/").removeprefix("reward/")
    bounds = [run.history.get(f"eval/gain_{side}/{name}", {}).get(step) for side in ("low", "high")]
    before = run.first(metric)
    if before is None or bounds[0] is None or bounds[1] is None:
        return None
    return before + bounds[0], before + bounds[1]


def _fired(run: PastRun, metric: str, step: int) -> bool:
    return run.history.get(f"guard/beyond/{metric.removeprefix('eval/')}", {}).get(step, 0.0) > 0


def describe_bands(groups: Sequence[RunGroup]) -> str:
    """Return a sentence that explains lines and bands."""
    if any(len(group.runs) > 1 for group in groups):
        return (
            "Lines are means over seeds, bands the standard error of their gain; "
            "with a single seed, its 95 % interval."
        )
    return "Bands are 95 % intervals of the paired gain, over prompts."


def _axes(groups: Sequence[RunGroup]) -> list[tuple[str, str]]:
    """Return the cost axes: with GPU hours if there are any, else with seconds."""
    with_gpu = any((run.last("cost/gpu_hours") or 0) > 0 for group in groups for run in group.runs)
    unused = SECONDS if with_gpu else "cost/gpu_hours"
    return [(axis, label) for axis, label in AXES.items() if axis != unused]


def _scores(groups: Sequence[RunGroup], names: Sequence[str]) -> dict[str, list[float]]:
    """Return the held-out rewards of the groups that may be the best ones, by label."""
    scores = {}
    for group in groups:
        best = [group.best(f"eval/reward/{name}") for name in names]
        values = [value for value in best if value is not None]
        if group.is_eligible and len(values) == len(names):
            scores[group.label] = values
    return scores


def drawn(figure: Figure, name: str, caption: str, folder: Path) -> Drawn:
    """Write a figure's files; return it for a page."""
    plain = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)
    return Drawn(figures.write(figure, folder / plain), plain, caption)
