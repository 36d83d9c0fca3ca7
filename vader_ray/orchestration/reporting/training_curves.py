"""Curves of the training steps: rewards, gradient norm, learning rate, seconds and memory of each step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

from vader_ray.orchestration.reporting.figures import AUTOMATIC, FROM_ZERO, Series
from vader_ray.orchestration.reporting.report_figures import Drawn, RunGroup, draw_lines

MAX_POINTS = 1000
"""Points of a line; of longer runs, neighbouring steps are averaged."""
SMOOTHED_PART, MIN_WINDOW = 16, 3
"""A smoothed point is the mean of 1 / `SMOOTHED_PART` of all points, at least of `MIN_WINDOW`."""
_MEASURED = {
    "train/grad_norm": ("Gradient norm", "Norm of the adapter's gradient, before it is clipped."),
    "train/learning_rate": ("Learning rate", "Learning rate of each step."),
    "time/step_seconds": ("Seconds per step", "Duration of each training step, without evaluations."),
    "memory/peak_gib": ("Peak memory (GiB)", "Highest memory of worker 0 since it started."),
}
"""Title and caption of each metric beside the rewards."""
_SMOOTH = ("train/reward", "train/grad_norm", "time/")
"""Prefixes of the metrics that vary from step to step."""
_FROM_ZERO = ("time/", "memory/")
"""Prefixes of the amounts, whose axis begins at 0."""


def draw_training(groups: Sequence[RunGroup], folder: Path) -> Iterator[Drawn]:
    """Draw the rewards of the training videos and what else is measured in every step."""
    for metric, (title, caption) in (_rewards(groups) | _MEASURED).items():
        is_smooth = metric.startswith(_SMOOTH)
        lines = [line for group in groups if (line := step_series(group, metric, is_smooth=is_smooth)).x]
        if not lines:
            continue
        if any(line.raw for line in lines):
            caption += " Thick: mean of the neighbouring steps; thin: single steps."
        name = metric.replace("/", "-")
        y_range = FROM_ZERO if metric.startswith(_FROM_ZERO) else AUTOMATIC
        yield draw_lines(
            lines, name, caption, folder, title=title, x_label="step", y_label=title, y_range=y_range
        )


def _rewards(groups: Sequence[RunGroup]) -> dict[str, tuple[str, str]]:
    """Return title and caption of each reward, and of the objective if it is not the only reward."""
    names = list(dict.fromkeys(name for group in groups for run in group.runs for name in run.rewards))
    of_videos = "of the training videos of each step, whose prompts differ from step to step."
    rewards = {f"train/reward/{name}": (f"Reward {name}", f"Mean {name} {of_videos}") for name in names}
    objective = {"train/reward_mean": ("Objective", f"Weighted sum of the rewards, mean {of_videos}")}
    return rewards if len(names) == 1 else objective | rewards


def step_series(group: RunGroup, metric: str, *, is_smooth: bool = False) -> Series:
    """Return a metric at every training step, as mean over the seeds; if asked, smoothed over steps."""
    histories = [history for run in group.runs if (history := run.history.get(metric))]
    steps = sorted({step for history in histories for step in history if step > 0})
    points = [
        (float(step), fmean(history[step] for history in histories if step in history)) for step in steps
    ]
    points = _thinned(points)
    x, y = [step for step, _ in points], [value for _, value in points]
    window = max(MIN_WINDOW, len(y) // SMOOTHED_PART)
    if not is_smooth or len(y) < 2 * window:
        return Series(group.label, x, y)
    return Series(group.label, x, _smoothed(y, window // 2), raw=y)


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    size = -(-len(points) // MAX_POINTS)
    blocks = [points[start : start + size] for start in range(0, len(points), max(1, size))]
    return [(fmean(step for step, _ in block), fmean(value for _, value in block)) for block in blocks]


def _smoothed(values: Sequence[float], reach: int) -> list[float]:
    """Return the mean of each value and up to `reach` neighbours on either side, as many on both."""
    return [
        fmean(values[index - near : index + near + 1])
        for index in range(len(values))
        for near in (min(reach, index, len(values) - 1 - index),)
    ]
