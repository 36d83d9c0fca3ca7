"""The cross-reward matrix and the hacking index: gains of all rewards after training on some of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isfinite
from pathlib import Path
from statistics import fmean

from vader_ray.metrics.core.statistics import hacking_index, standard_error
from vader_ray.orchestration.reporting import figures
from vader_ray.orchestration.reporting.past_runs import PastRun
from vader_ray.orchestration.reporting.report_figures import Drawn, RunGroup, drawn

LEAD = (
    "Gain of each reward after the last step on validation prompts, in standard deviations of the base "
    "model's scores over prompts, which makes rewards comparable. The hacking index is the mean fall of the "
    "rewards that were only measured (a rise counts as 0) divided by the mean gain of the trained rewards: 0 "
    "if none fell, 1 if they fell as much as the trained ones rose."
)
"""Explains the figure; the formula is `vader_ray.metrics.core.statistics.hacking_index`."""


def draw_cross_rewards(groups: Sequence[RunGroup], folder: Path) -> Iterator[Drawn]:
    """Draw a matrix of the gains: a row for each group of runs, a column for each reward, and the index.

    Draws nothing without runs that measured rewards beside the trained one.
    """
    shown = [group for group in groups if any(len(_effects(run)) > 1 for run in group.runs)]
    names = list(dict.fromkeys(name for group in shown for run in group.runs for name in _effects(run)))
    if not shown:
        return
    cells = [[_cell(group, name) for name in names] for group in shown]
    indices = [index_of(group.runs) for group in shown]
    figure = figures.heat_map(
        cells,
        rows=_labels(shown),
        columns=names,
        title="Trained (rows) and measured rewards",
        notes=("hacking index", ["–" if not isfinite(index) else f"{index:.2f}" for index in indices]),
        unit="gain in standard deviations",
    )
    caption = "Gains in standard deviations of the base model's scores; trained rewards are framed."
    if any(len(group.runs) > 1 for group in shown):
        caption += " Means over seeds ± standard error over seeds."
    yield drawn(figure, "cross-rewards", caption, folder)


def index_of(runs: Sequence[PastRun]) -> float:
    """Return the hacking index of the rewards of all runs together."""
    gains = [(name in run.rewards, gain) for run in runs for name, gain in _effects(run).items()]
    return hacking_index(
        [gain for is_trained, gain in gains if is_trained],
        [gain for is_trained, gain in gains if not is_trained],
    )


def _effects(run: PastRun) -> dict[str, float]:
    """Return the effect size of each reward in the last evaluation."""
    sizes = {name: run.last(f"eval/effect_size/{name}") for name in (*run.rewards, *run.heldout)}
    return {name: size for name, size in sizes.items() if size is not None and isfinite(size)}


def _cell(group: RunGroup, name: str) -> figures.Cell | None:
    values = [effects[name] for run in group.runs if name in (effects := _effects(run))]
    if not values:
        return None
    error = standard_error(values)
    return figures.Cell(
        fmean(values), error if isfinite(error) else None, any(name in run.rewards for run in group.runs)
    )


def _labels(groups: Sequence[RunGroup]) -> list[str]:
    """Return the trained rewards of each group, or the groups' labels if several trained the same."""
    trained = [" + ".join(group.runs[0].rewards) for group in groups]
    return trained if len(set(trained)) == len(trained) else [group.label for group in groups]
