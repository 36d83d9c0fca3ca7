"""Table, figure and sheets of `benchmarks.results`, from the folders of its runs alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path
from statistics import fmean

from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks.estimates import Estimate, save
from vader_ray.config.yaml_text import parse_yaml
from vader_ray.orchestration.publishing.finished_run import finished_run
from vader_ray.orchestration.reporting.figures import COLOURS, MARKERS, STYLE
from vader_ray.orchestration.runs.run_dir import RunDir
from vader_ray.orchestration.runs.summary import REWARD, Results, RunSummary
from vader_ray.training.media import before_after_sheet

NUM_SHOWN = 2
"""Videos on a sheet: the first ones of the first seed."""


@dataclass(frozen=True)
class Result:
    """A recipe and its runs, which differ in the seed."""

    recipe: str
    runs: list[tuple[RunDir, RunSummary]]

    @property
    def tested(self) -> list[Results]:
        """Results of each run on the test prompts."""
        return [found for _, summary in self.runs if (found := summary.tested) is not None]

    @property
    def trained(self) -> list[str]:
        """Logged names of the trained rewards."""
        document = parse_yaml(self.runs[0][0].recipe.read_text(encoding="utf-8"))
        names = [each["label"] or each["reward"].rpartition(".")[2] for each in document["rewards"]]
        return [f"{REWARD}{name}" for name in names]

    @property
    def heldout(self) -> list[str]:
        """Logged names of the rewards that were only measured."""
        names = [f"{REWARD}{name}" for name in self.tested[0].rewards]
        return [name for name in names if name not in self.trained]

    @property
    def metrics(self) -> list[str]:
        """Logged names of the metrics that have a value for each prompt."""
        return [name for name in self.tested[0].metrics if name in self.runs[0][1].test_prompt_gains]

    def gain(self, metric: str) -> Estimate:
        """Return the mean gain over seeds and prompts, with its interval over both."""
        return Estimate.over_seeds_and_prompts([run.test_prompt_gains[metric] for _, run in self.runs])

    def means(self, metric: str) -> tuple[float, float]:
        """Return the means over seeds with the base models and with the adapters."""
        return fmean(each.before[metric] for each in self.tested), fmean(
            each.after[metric] for each in self.tested
        )

    def deviation(self, metric: str) -> float:
        """Return the standard deviation of the base model's scores over prompts, a mean over seeds."""
        name = metric.removeprefix(REWARD)
        pairs = [
            (summary.metrics_test[f"test/gain/{name}"], summary.metrics_test.get(f"test/effect_size/{name}"))
            for _, summary in self.runs
        ]
        found = [gain / effect for gain, effect in pairs if effect]
        return fmean(found) if found else nan


def results_table(results: Sequence[Result]) -> list[list[str]]:
    """Return the heading and a row for each recipe: its rewards, and what it cost."""
    heading = [
        "recipe",
        "seeds",
        "trained reward",
        "held-out rewards",
        "minutes of a run (training)",
        "reward queries",
    ]
    return [heading, *(_row(result) for result in results)]


def _row(result: Result) -> list[str]:
    summaries = [summary for _, summary in result.runs]
    workers = {f"{each.num_workers} {'GPU' if each.gpu_hours else 'CPU'} workers" for each in summaries}
    wall, train = (fmean(getattr(each, name) / 60 for each in summaries) for name in (
        "wall_seconds", "train_seconds"))  # fmt: skip
    alarmed = sum(bool(each.alarms) for each in summaries)
    return [
        f"`{result.recipe}`",
        f"{len(result.runs)}" + (f"; the guard fired in {alarmed}" if alarmed else ""),
        *_rewards(result),
        f"{wall:.1f} ({train:.1f}), {', '.join(sorted(workers))}",
        f"{fmean(each.reward_queries for each in summaries):.0f}",
    ]


def summary_table(results: Sequence[Result]) -> list[list[str]]:
    """Return the heading and a row for each recipe: its command, and its rewards."""
    rows = [
        [
            f"`vader-ray train {result.recipe} --workers 2`",
            str(len(result.runs)),
            *_rewards(result),
        ]
        for result in results
    ]
    return [["command", "seeds", "trained reward", "held-out rewards"], *rows]


def metrics_table(results: Sequence[Result]) -> list[list[str]]:
    """Return the heading and a row for each recipe: its metrics, empty where a recipe lacks one."""
    metrics = list(dict.fromkeys(name for result in results for name in result.metrics))
    rows = [
        [
            f"`{result.recipe}`",
            *(_change(result, metric) if metric in result.metrics else "" for metric in metrics),
        ]
        for result in results
    ]
    return [["recipe", *map(_name, metrics)], *rows]


def _rewards(result: Result) -> list[str]:
    """Write the changes of the trained and of the held-out rewards."""
    return [
        "; ".join(f"{_name(metric)} {_change(result, metric)}" for metric in metrics)
        for metrics in (result.trained, result.heldout)
    ]


def _name(metric: str) -> str:
    return metric.removeprefix(REWARD).removeprefix("eval/").replace("/", ": ")


def _change(result: Result, metric: str) -> str:
    """Write the means before and after, and the gain with its interval."""
    before, after = result.means(metric)
    digits = 3 if max(abs(before), abs(after)) < 1 else 2
    means = f"{before:.{digits}f} → {after:.{digits}f}".replace("-", "−")
    return f"{means}, {result.gain(metric).interval_text(digits)}"


def draw_sheets(results: Sequence[Result], folder: Path) -> list[Path]:
    """Draw the first videos of each recipe's first seed before and after training; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    sheets = []
    for result in results:
        run_folder, summary = result.runs[0]
        run = finished_run(run_folder, summary, run_folder.best_adapter)
        before, after = ([video for _, video in run.videos(step)][:NUM_SHOWN] for step in (0, run.step))
        gains = ", ".join(
            f"{name.removeprefix(REWARD)} {result.gain(name).interval_text(3)}" for name in result.trained
        )
        seeds = "one seed" if len(result.runs) == 1 else f"{len(result.runs)} seeds"
        title = f"{result.recipe}: {gains} on test prompts, {seeds}"
        sheets.append(folder / f"{result.recipe}.webp")
        before_after_sheet(before, after, title=title).save(sheets[-1], quality=85)
    return sheets


def results_figure(results: Sequence[Result], path: Path) -> Path:
    """Draw each recipe's gains in standard deviations of the base model's scores, with intervals; return the
    file."""
    lines = [(result, name) for result in results for name in (*result.trained, *result.heldout)]
    with rc_context(STYLE):
        figure = Figure(figsize=(7.5, 1.2 + 0.28 * len(lines)), layout="constrained")
        axes = figure.add_subplot(
            xlabel="gain in standard deviations of the base model's scores over prompts"
        )
        for y, (result, name) in enumerate(lines):
            gain, kind = result.gain(name), int(name not in result.trained)
            unit = result.deviation(name) if gain.mean else 1.0  # without any gain the unit does not matter
            style = {"color": COLOURS[kind], "marker": MARKERS[kind]}
            own = [
                run.metrics_test[f"test/gain/{name.removeprefix(REWARD)}"] / unit for _, run in result.runs
            ]
            axes.plot(own, [y] * len(own), markersize=3, alpha=0.5, linestyle="", **style)
            axes.plot([gain.mean / unit], [y], markersize=6, linestyle="", **style)
            if isfinite(gain.low):
                axes.plot([gain.low / unit, gain.high / unit], [y, y], color=COLOURS[kind], linewidth=1.5)
        axes.axvline(0, color="grey", linewidth=0.8)
        axes.set_ylim(len(lines) - 0.5, -0.5)
        labels = [
            f"{result.recipe.removeprefix('shapes_')}: " * (name == result.trained[0])
            + name.removeprefix(REWARD)
            for result, name in lines
        ]
        axes.set_yticks(range(len(lines)), labels, fontsize=9)
        for kind, label in enumerate(("trained reward", "held-out reward")):
            axes.plot([], [], color=COLOURS[kind], marker=MARKERS[kind], label=label)
        figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    return save(figure, path)
