"""Estimates over seeds and prompts with their intervals, censored costs, and how benchmarks show both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, nan
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any, TypeAlias

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

from vader_ray.metrics.core.statistics import crossed_interval
from vader_ray.orchestration.reporting.figures import COLOURS, DOTS_PER_INCH, MARKERS, STYLE

Row: TypeAlias = Mapping[str, Any]
"""A line of a result file: the job, and what was measured."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its 95 % interval; the ends are NaN if there is none."""

    mean: float
    low: float
    high: float

    @classmethod
    def over_seeds(cls, values: Sequence[float]) -> Estimate:
        """Return the mean and Student's interval over one value per seed."""
        if len(values) < 2:
            return cls(fmean(values), float("nan"), float("nan"))
        half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
        return cls(fmean(values), fmean(values) - half, fmean(values) + half)

    @classmethod
    def over_seeds_and_prompts(cls, values: Sequence[Sequence[float]]) -> Estimate:
        """Return the mean of one value per seed and prompt, and its interval over both; see
        `crossed_interval`."""
        table: NDArray[np.float64] = np.asarray(values, dtype=np.float64)
        return cls(float(table.mean()), *crossed_interval(table))

    @property
    def half_width(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2

    def text(self, digits: int = 2) -> str:
        """Return mean and half width of a symmetric interval."""
        shown = f"{self.mean:+.{digits}f}"
        return shown if self.low != self.low else f"{shown} ± {self.half_width:.{digits}f}"

    def interval_text(self, digits: int = 2) -> str:
        """Return the mean with the ends of the interval in parentheses."""
        shown = f"{self.mean:+.{digits}f}"
        both = "" if self.low != self.low else f" ({self.low:+.{digits}f} to {self.high:+.{digits}f})"
        return f"{shown}{both}".replace("-", "−")


def by_seed(rows: Iterable[Row]) -> list[Row]:
    """Return rows in the order of their seeds."""
    return sorted(rows, key=lambda row: int(row["job"]["seed"]))


def prompt_gains(rows: Iterable[Row], metric: str, index: int = -1) -> list[list[float]]:
    """Return the gain of each prompt since before training, seed by seed.

    Args:
        metric: logged name, ``eval/…``.
        index: number of the evaluation.
    """
    return [
        [
            after - before
            for before, after in zip(
                row["evaluations"][0]["prompts"][metric],
                row["evaluations"][index]["prompts"][metric],
                strict=True,
            )
        ]
        for row in by_seed(rows)
    ]


def effect_sizes(rows: Sequence[Row], metric: str, index: int = -1) -> list[list[float]]:
    """Return `prompt_gains` in standard deviations of the base model's values over prompts, a mean over
    seeds; NaN if these are all equal."""
    before = [row["evaluations"][0]["prompts"][metric] for row in rows]
    deviation = fmean(stdev(values) for values in before) or nan
    return [[gain / deviation for gain in gains] for gains in prompt_gains(rows, metric, index)]


def grouped(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Return the runs by label and trained reward, in the order of their seeds."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in by_seed(rows):
        found.setdefault((row["job"]["label"], row["job"]["reward"]), []).append(row)
    return found


def mean_effects(rows: Sequence[Row], rewards: Sequence[str]) -> list[list[float]]:
    """Return the mean of `effect_sizes` over rewards, of each seed and prompt."""
    of_rewards = [effect_sizes(rows, f"eval/reward/{name}") for name in rewards]
    return [[fmean(prompt) for prompt in zip(*seed, strict=True)] for seed in zip(*of_rewards, strict=True)]


def diversity_change(row: Row) -> float:
    """Return the relative change of the diversity of test videos."""
    first, last = row["evaluations"][0], row["evaluations"][-1]
    return float(last["eval/diversity"] / first["eval/diversity"] - 1)


@dataclass(frozen=True, slots=True)
class Bounds:
    """A positive number of which two bounds are known."""

    low: float
    high: float

    @classmethod
    def ratio(cls, numerator: Bounds, denominator: Bounds) -> Bounds:
        """Return the bounds of a ratio."""
        return cls(numerator.low / denominator.high, numerator.high / denominator.low)


@dataclass(frozen=True, slots=True)
class MedianInterval:
    """Median of numbers of which some are known by bounds only."""

    median: Bounds
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end; infinite if too many numbers have no upper bound."""
    coverage: float
    """Probability with which the interval covers the median."""

    def text(self) -> str:
        """Return the bounds of the median and its interval."""
        low, high = self.median.low, self.median.high
        shown = f"> {low:.3g}" if high == inf else f"{low:.3g} to {high:.3g}" if low < high else f"{low:.3g}"
        end = "∞" if self.high == inf else f"{self.high:.3g}"
        return f"{shown} (interval {self.low:.3g} to {end})"


def median_interval(values: Sequence[Bounds], confidence: float = 0.95) -> MedianInterval:
    """Return the median of numbers that may be censored, and its interval from order statistics.

    The interval from the k-th smallest to the k-th largest of n numbers covers the median with probability
    1 − 2 · P(Binomial(n, ½) < k) whatever their distribution (David and Nagaraja 2003, "Order Statistics",
    section 7.1); k is the largest that reaches the confidence, at least 1, so five numbers have 93.75 %. The
    lower end is taken from the lower bounds and the upper one from the upper bounds, which can only widen it:
    a number of which only a lower bound is known counts as infinite above.
    """
    n = len(values)
    coverage = [1 - 2 * float(stats.binom.cdf(k - 1, n, 0.5)) for k in range(1, n // 2 + 1)] or [0.0]
    k = max([index + 1 for index, each in enumerate(coverage) if each >= confidence], default=1)
    lows, highs = sorted(each.low for each in values), sorted(each.high for each in values)
    return MedianInterval(Bounds(median(lows), median(highs)), lows[k - 1], highs[n - k], coverage[k - 1])


def first_reached(curve: Sequence[tuple[float, float]], level: float, smallest: float) -> Bounds:
    """Return the cost at which a gain first reaches a level: between the evaluation at which it has reached
    it and the one before.

    Args:
        curve: cost and gain of each evaluation, the first one before training.
        smallest: cost of a single step, without which nothing is gained.

    Returns:
        Infinite above, and the last cost below, if no evaluation reaches it.
    """
    before = smallest
    for cost, gain in curve[1:]:
        if gain >= level:
            return Bounds(before, cost)
        before = cost
    return Bounds(before, inf)


# ---- figures, and numbers as text


def percent(change: float) -> str:
    """Write a relative change in per cent, with its sign."""
    return f"{100 * change:+.0f} %".replace("-", "−")


def panels(
    titles: Sequence[str], x_label: str, y_label: str, labels: Sequence[str]
) -> tuple[Figure, list[Any]]:
    """Return a figure with axes side by side, and a legend of series below them."""
    with rc_context(STYLE):
        figure = Figure(figsize=(1.2 + 3.1 * len(titles), 3.6), layout="constrained")
        axes = list(figure.subplots(1, len(titles), squeeze=False)[0])
        for each, title in zip(axes, titles, strict=True):
            each.set(title=title, xlabel=x_label)
        axes[0].set_ylabel(y_label)
        for index, label in enumerate(labels):
            axes[0].plot([], [], label=label, **style(index))
        figure.legend(loc="outside lower center", ncols=min(len(labels), 6), fontsize=9)
    return figure, axes


def style(index: int) -> dict[str, Any]:
    """Return colour and marker of a series."""
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)], "markersize": 5}


def draw_band(axes: Any, x: Sequence[float], estimates: Sequence[Estimate], index: int) -> None:
    """Draw a series of means with its intervals as a band."""
    axes.plot(x, [each.mean for each in estimates], **style(index))
    low, high = [each.low for each in estimates], [each.high for each in estimates]
    axes.fill_between(x, low, high, color=style(index)["color"], alpha=0.13, linewidth=0)


def draw_interval(axes: Any, x: float, estimate: Estimate, index: int) -> None:
    """Draw one mean with its interval."""
    axes.plot([x, x], [estimate.low, estimate.high], color=style(index)["color"], linewidth=1.5)
    axes.plot([x], [estimate.mean], **style(index))


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context(STYLE):
        figure.savefig(path, dpi=DOTS_PER_INCH)
    return path
