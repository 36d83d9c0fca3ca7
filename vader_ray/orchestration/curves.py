"""Curves of a sweep that compares methods: a reward against what it cost, with bands over seeds, as PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from mlflow import MlflowClient
from numpy.typing import NDArray

from vader_ray.orchestration.results import Row

QUERIES, SECONDS, CALLS = "cost/reward_queries", "cost/train_seconds", "cost/denoiser_calls"
_AXES = {QUERIES: "reward queries", SECONDS: "seconds of training, evaluations left out"}
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's, told apart by the colour-blind."""
_MARKERS, _DASHES = ("o", "s", "^", "D", "v", "P"), ("-", "--", "-.", ":")


@dataclass(frozen=True)
class Curve:
    """One method's setting on one reward: a row per seed, a column per evaluation."""

    reward: str
    method: str
    setting: str
    values: NDArray[np.float64]
    """The reward on held-out prompts."""
    costs: dict[str, NDArray[np.float64]]
    """Mean over the seeds."""

    @property
    def mean(self) -> NDArray[np.float64]:
        mean: NDArray[np.float64] = self.values.mean(axis=0)
        return mean

    @property
    def standard_error(self) -> NDArray[np.float64]:
        """Of the mean gain over the start, over the seeds, of which each has its own held-out noise; 0 for one seed."""
        num_seeds, gains = len(self.values), self.values - self.values[:, :1]
        error: NDArray[np.float64] = gains.std(axis=0, ddof=int(num_seeds > 1)) / num_seeds**0.5
        return error


def show_curves(rows: Sequence[Row], uri: str, path: Path, *, title: str) -> list[Path]:
    """Print how every setting ended and how soon the gradient of the reward got there; the files of the figure."""
    curves = read_curves(rows, uri)
    if not curves:
        return []
    for curve in curves:
        first, last, error = curve.mean[0], curve.mean[-1], curve.standard_error[-1]
        gain = f"{first:.4g} → {last:.4g}, a gain of {last - first:+.3g} ± {error:.2g} over {len(curve.values)} seeds"
        spent = f"{curve.costs[CALLS][-1]:.0f} denoiser calls, {curve.costs[SECONDS][-1]:.0f} s"
        print(f"{curve.reward} {curve.method} ({curve.setting}): {gain}, {spent}")
    best = best_curves(curves)
    for line in efficiency(best, "vader"):
        print(line)
    return draw_curves(best, path, title=title)


def read_curves(rows: Sequence[Row], uri: str) -> list[Curve]:
    """A curve for each reward, method and setting of a sweep's table, from the histories of its completed trials.

    The table has the swept values ``reward``, ``method``, ``setting`` and ``seed``.
    """
    client = MlflowClient(uri)
    groups = dict[tuple[str, str, str], list[Row]]()
    for row in rows:
        if row["status"] == "completed":
            groups.setdefault((row["reward"], row["method"], str(row["setting"])), []).append(row)
    return [_curve(client, *key, members) for key, members in groups.items()]


def _curve(client: MlflowClient, reward: str, method: str, setting: str, rows: Sequence[Row]) -> Curve:
    values, costs = list[list[float]](), dict[str, list[list[float]]]()
    for row in rows:
        history = _history(client, row["mlflow_run_id"], f"eval/reward/{reward}")
        values.append(list(history.values()))
        for cost in (QUERIES, SECONDS, CALLS):
            spent = _history(client, row["mlflow_run_id"], cost)
            costs.setdefault(cost, []).append([spent[step] for step in history])
    means = {cost: np.array(columns).mean(axis=0) for cost, columns in costs.items()}
    return Curve(reward, method, setting, np.array(values), means)


def _history(client: MlflowClient, run_id: str, metric: str) -> dict[int, float]:
    return {point.step: point.value for point in sorted(client.get_metric_history(run_id, metric), key=lambda point: point.step)}


def best_curves(curves: Sequence[Curve]) -> list[Curve]:
    """Of each reward and method the setting that ends highest in the mean; of those run with fewer seeds none is taken."""
    best = dict[tuple[str, str], Curve]()
    most = max(len(curve.values) for curve in curves)
    for curve in curves:
        key = curve.reward, curve.method
        if len(curve.values) == most and (key not in best or curve.mean[-1] > best[key].mean[-1]):
            best[key] = curve
    return list(best.values())


def draw_curves(curves: Sequence[Curve], path: Path, *, title: str) -> list[Path]:
    """A row of panels per reward (against queries, against seconds), as PNG and SVG beside ``path``; their paths."""
    rewards = list(dict.fromkeys(curve.reward for curve in curves))
    figure = Figure(figsize=(9.6, 0.6 + 3.1 * len(rewards)), layout="constrained")
    panels = figure.subplots(len(rewards), len(_AXES), squeeze=False)
    for reward, row in zip(rewards, panels, strict=True):
        for (cost, label), axes in zip(_AXES.items(), row, strict=True):
            _draw_panel(axes, [curve for curve in curves if curve.reward == reward], cost)
            axes.set(xlabel=label, ylabel=f"{reward} on held-out prompts", xlim=(0, None))
        row[0].legend(frameon=False, loc="best", fontsize=9)
    num_seeds = min(len(curve.values) for curve in curves)
    figure.suptitle(f"{title}: mean of {num_seeds} seeds, standard error of the gain", x=0.01, ha="left", fontsize=11)
    paths = [path.with_suffix(suffix) for suffix in (".png", ".svg")]
    for place in paths:
        figure.savefig(place, dpi=150, metadata={"Date": None} if place.suffix == ".svg" else None)
    return paths


def _draw_panel(axes: Any, curves: Sequence[Curve], cost: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#d4d4d4", linewidth=0.6)
    axes.set_axisbelow(True)
    for place, curve in enumerate(curves):
        look = {"color": _COLOURS[place % 6], "marker": _MARKERS[place % 6], "linestyle": _DASHES[place % 4]}
        x, error = curve.costs[cost], curve.standard_error
        axes.plot(x, curve.mean, label=f"{curve.method} ({curve.setting})", linewidth=1.8, markersize=4, **look)
        axes.fill_between(x, curve.mean - error, curve.mean + error, color=look["color"], alpha=0.16, linewidth=0)


def efficiency(curves: Sequence[Curve], method: str) -> list[str]:
    """Per reward a line: from how many queries on a method is at or above the best other method's last value."""
    lines = []
    for reward in dict.fromkeys(curve.reward for curve in curves):
        mine = next(curve for curve in curves if (curve.reward, curve.method) == (reward, method))
        others = [curve for curve in curves if curve.reward == reward and curve.method != method]
        if not others:
            continue
        best = max(others, key=lambda curve: float(curve.mean[-1]))
        reached = np.flatnonzero(mine.mean >= best.mean[-1])
        target = f"{best.method}'s {best.mean[-1]:.4g} after {best.costs[QUERIES][-1]:.0f} reward queries"
        if not len(reached):
            lines.append(f"{reward}: {method} does not reach {target}")
            continue
        spent = {cost: (mine.costs[cost][reached[0]], best.costs[cost][-1]) for cost in (QUERIES, SECONDS, CALLS)}
        (queries, all_queries), (seconds, all_seconds), (calls, all_calls) = spent.values()
        lines.append(
            f"{reward}: {method} is at {target} after {queries:.0f}: 1/{all_queries / queries:.3g} of the reward queries, "
            f"1/{all_calls / calls:.3g} of the denoiser calls, 1/{all_seconds / seconds:.3g} of the seconds"
        )
    return lines
