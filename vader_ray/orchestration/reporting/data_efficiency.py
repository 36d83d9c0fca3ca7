"""Comparison of methods at the end of a sweep: gain and cost of each setting, figures of the best ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vader_ray.orchestration.reporting.past_runs import PastRun
from vader_ray.orchestration.reporting.report_figures import (
    CALLS,
    QUERIES,
    SECONDS,
    RunGroup,
    draw_rewards,
    gain_error,
    series,
)

COSTS = {"reward queries": QUERIES, "denoiser calls": CALLS, "seconds": SECONDS}
"""Metric of each cost."""


@dataclass(frozen=True)
class Curve:
    """One setting of a method, trained on a reward with several seeds."""

    reward: str
    """Name of the trained reward."""
    method: str
    """Swept method, such as ``vader``."""
    setting: str
    """Swept setting of the method, such as ``fast``."""
    runs: list[PastRun]
    """One run per seed."""

    @property
    def group(self) -> RunGroup:
        """The runs, labelled for a figure."""
        return RunGroup(f"{self.method} ({self.setting})", self.runs)

    def against(self, cost: str) -> tuple[list[float], list[float]]:
        """Return a cost and the reward on held-out prompts at every evaluation, as means over the seeds."""
        line = series(self.group, f"eval/reward/{self.reward}", cost)
        return list(line.x), list(line.y)

    @property
    def end(self) -> float:
        """Reward of the last evaluation, mean over the seeds."""
        return self.against(QUERIES)[1][-1]


def show_curves(runs: Sequence[PastRun], folder: Path) -> list[Path]:
    """Print each setting's gain and VADER's cost against the best other method; return the figures' files.

    Args:
        runs: trials of a sweep over ``reward``, ``method``, ``setting`` and ``seed``.
        folder: folder of the figures.
    """
    found = curves(runs)
    for curve in found:
        print(_ending(curve))
    best = best_curves(found)
    for line in efficiency(best, "vader"):
        print(line)
    for reward in dict.fromkeys(curve.reward for curve in best):
        list(draw_rewards([curve.group for curve in best if curve.reward == reward], [reward], folder))
    return sorted(folder.glob("*"))


def curves(runs: Sequence[PastRun]) -> list[Curve]:
    """Group the completed trials by reward, method and setting."""
    found = dict[tuple[str, str, str], Curve]()
    for run in runs:
        if run.status == "completed":
            key = run.swept["reward"], run.swept["method"], run.swept["setting"]
            found.setdefault(key, Curve(*key, [])).runs.append(run)
    return list(found.values())


def _ending(curve: Curve) -> str:
    metric, rewards = f"eval/reward/{curve.reward}", curve.against(QUERIES)[1]
    (calls, _), (seconds, _) = curve.against(CALLS), curve.against(SECONDS)
    error = gain_error(curve.runs, metric, max(curve.runs[0].history[metric]))
    return (
        f"{curve.reward} {curve.method} ({curve.setting}): {rewards[0]:.4g} → {rewards[-1]:.4g}, a gain of "
        f"{rewards[-1] - rewards[0]:+.3g} ± {error:.2g} over {len(curve.runs)} seeds, "
        f"{calls[-1]:.0f} denoiser calls, {seconds[-1]:.0f} s"
    )


def best_curves(found: Sequence[Curve]) -> list[Curve]:
    """Return, per reward and method, the setting with the highest final mean.

    Settings with fewer seeds are skipped.
    """
    most = max((len(curve.runs) for curve in found), default=0)
    best = dict[tuple[str, str], Curve]()
    for curve in found:
        key = curve.reward, curve.method
        if len(curve.runs) == most and (key not in best or curve.end > best[key].end):
            best[key] = curve
    return list(best.values())


def efficiency(best: Sequence[Curve], method: str) -> list[str]:
    """Return a line per reward: the cost at which a method reaches the best other method's final value."""
    lines = []
    for mine in best:
        others = [curve for curve in best if curve.reward == mine.reward and curve.method != method]
        if mine.method != method or not others:
            continue
        rival = max(others, key=lambda curve: curve.end)
        queries, rewards = mine.against(QUERIES)
        reached = next((index for index, reward in enumerate(rewards) if reward >= rival.end), None)
        target = f"{rival.method}'s {rival.end:.4g} after {rival.against(QUERIES)[0][-1]:.0f} reward queries"
        if reached is None:
            lines.append(f"{mine.reward}: {method} does not reach {target}")
            continue
        parts = {name: _part(mine.against(cost)[0][reached], rival.against(cost)[0][-1])
                 for name, cost in COSTS.items()}  # fmt: skip
        shares = ", ".join(f"{part} of the {name}" for name, part in parts.items())
        lines.append(f"{mine.reward}: {method} reaches {target} after {queries[reached]:.0f}: {shares}")
    return lines


def _part(spent: float, whole: float) -> str:
    return f"1/{whole / spent:.3g}" if spent else "none"
