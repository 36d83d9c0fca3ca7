"""Tables and figures of `benchmarks.backward_paths`, from its result files alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure

from benchmarks.estimates import Estimate, Row
from benchmarks.pages import print_table
from vader_ray.metrics.core import statistics
from vader_ray.orchestration.reporting.figures import COLOURS, DOTS_PER_INCH, MARKERS

REFERENCE = "last"
"""The path with which the others are compared, seed by seed."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A training run; gains are in standard deviations of the base model's scores."""

    trained: float
    """Gain of the trained reward."""
    heldout: float
    """Mean gain of the held-out rewards."""
    loss: float
    """Mean fall of the held-out rewards; a rise counts as 0."""
    diversity: float
    """Change relative to the base model's."""
    motion: float
    """Change relative to the base model's."""


def outcomes(rows: Iterable[Row]) -> dict[str, dict[str, dict[int, Outcome]]]:
    """Return the training runs by path, reward and seed, of the seeds that are finished."""
    runs = _of_finished_seeds([row for row in rows if row["job"]["part"] == "training"])
    units = {name: fmean(run["spread"][name] for run in runs) for name in (runs[0]["spread"] if runs else ())}
    found: dict[str, dict[str, dict[int, Outcome]]] = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        job, first, last = run["job"], run["evaluations"][0], run["evaluations"][-1]
        gains = {
            name: (last[f"eval/reward/{name}"] - first[f"eval/reward/{name}"]) / unit
            for name, unit in units.items()
        }
        others = [gain for name, gain in gains.items() if name != job["reward"]]
        found[job["label"]][job["reward"]][job["seed"]] = Outcome(
            trained=gains[job["reward"]],
            heldout=fmean(others),
            loss=fmean(max(0.0, -gain) for gain in others),
            diversity=last["eval/diversity"] / first["eval/diversity"] - 1,
            motion=last["eval/motion"] / first["eval/motion"] - 1,
        )
    return found


def _of_finished_seeds(runs: Sequence[Row]) -> list[Row]:
    """Drop the seeds that have not yet as many runs as the others: a mean over other seeds misleads."""
    counts = Counter(run["job"]["seed"] for run in runs)
    return [run for run in runs if counts[run["job"]["seed"]] == max(counts.values())]


def mean_over_rewards(runs: Mapping[str, Mapping[int, Outcome]]) -> dict[int, Outcome]:
    """Return the mean of a path's runs over the rewards, by seed."""
    seeds = next(iter(runs.values())).keys()
    return {
        seed: Outcome(
            *(fmean(getattr(each[seed], name) for each in runs.values()) for name in Outcome.__slots__)
        )
        for seed in seeds
    }


def hacking_index(runs: Iterable[Outcome]) -> str:
    """Return the fall of the held-out rewards divided by the gain, both means over runs."""
    runs = list(runs)
    index = statistics.hacking_index([run.trained for run in runs], [-run.loss for run in runs])
    return f"{index:.2f}" if index == index else "no gain"


def training_table(rows: Sequence[Row]) -> list[list[str]]:
    """Return a row for each path, means over rewards and seeds, by the gain of the trained reward."""
    flops = {row["job"]["label"]: row["denoiser_flops"] for row in rows if row["job"]["part"] == "cost"}
    found = outcomes(rows)
    seeds = {path: mean_over_rewards(runs) for path, runs in found.items()}
    updates = {row["job"]["label"]: row["job"]["num_updates"] for row in rows if row["job"]["num_updates"]}
    table = [
        [
            "path",
            "FLOPs of an update",
            "updates",
            "seeds",
            "trained reward",
            "less that of `last`",
            "runs above `last`",
            "held-out rewards",
            "hacking index",
            "diversity",
            "motion",
        ]
    ]
    for path in sorted(seeds, key=lambda path: -fmean(run.trained for run in seeds[path].values())):
        runs = seeds[path]
        paired = [runs[seed].trained - seeds[REFERENCE][seed].trained for seed in runs]
        table.append(
            [
                f"`{path}`",
                f"{flops[path] / flops[REFERENCE]:.2f}",
                str(updates[path]),
                str(len(runs)),
                _estimate(runs.values(), "trained"),
                "" if path == REFERENCE else Estimate.over_seeds(paired).text(),
                "" if path == REFERENCE else _wins(found[path], found[REFERENCE]),
                _estimate(runs.values(), "heldout"),
                hacking_index(runs.values()),
                _estimate(runs.values(), "diversity"),
                _estimate(runs.values(), "motion"),
            ]
        )
    return table


def _wins(own: Mapping[str, Mapping[int, Outcome]], other: Mapping[str, Mapping[int, Outcome]]) -> str:
    """Return the number of runs whose trained reward gains more than the other path's with the same seed."""
    pairs = [
        (run.trained, other[reward][seed].trained)
        for reward, runs in own.items()
        for seed, run in runs.items()
    ]
    return f"{sum(mine > theirs for mine, theirs in pairs)} of {len(pairs)}"


def reward_table(rows: Sequence[Row]) -> list[list[str]]:
    """Return for each path the trained and the held-out gain with each reward."""
    found = outcomes(rows)
    rewards = list(next(iter(found.values())))
    table = [["path", *(f"{name}: {part}" for name in rewards for part in ("trained", "held out", "index"))]]
    for path, runs in found.items():
        cells = [f"`{path}`"]
        for name in rewards:
            own = runs[name].values()
            cells += [_estimate(own, "trained"), _estimate(own, "heldout"), hacking_index(own)]
        table.append(cells)
    return table


def _estimate(runs: Iterable[Outcome], name: str) -> str:
    return Estimate.over_seeds([getattr(run, name) for run in runs]).text()


def gradient_table(rows: Sequence[Row]) -> list[list[str]]:
    """Return for each path and scheduler the cosine, that of the mean, and the variance at equal FLOPs."""
    found = _by_scheduler(rows)
    table = [["path", *found]]
    for path in dict.fromkeys(name for runs in found.values() for name in runs):
        cells = [f"`{path}`"]
        for runs in found.values():
            cells.append(
                f"{runs[path]['cosine']:.2f}, {runs[path]['cosine_of_mean']:.2f}, "
                f"{_variance_per_flop(runs, path):.2f}"
                if path in runs
                else ""
            )
        table.append(cells)
    return table


def _by_scheduler(rows: Iterable[Row]) -> dict[str, dict[str, Row]]:
    found: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        found[row["job"]["tags"]["scheduler"]][row["job"]["label"]] = row
    return found


def _variance_per_flop(runs: Mapping[str, Row], path: str) -> float:
    """Return the variance that equal FLOPs leave, relative to the reference."""
    own, last = runs[path], runs[REFERENCE]
    return own["variance"] * own["denoiser_flops"] / (last["variance"] * last["denoiser_flops"])


def hacking_table(rows: Sequence[Row]) -> list[list[str]]:
    """Return a row for each run: gain, share of the gain without a prior, lowest held-out score."""
    table = [["path", "prior", "seed", "trained reward", "gain kept", "hps: start, lowest, end",
              "pickscore: start, lowest, end"]]  # fmt: skip
    free = {
        row["job"]["seed"]: _gain(row)
        for row in rows
        if row["job"]["label"] == REFERENCE and row["job"]["tags"]["prior"] == "0"
    }
    for row in sorted(rows, key=lambda row: (row["job"]["label"], float(row["job"]["tags"]["prior"]))):
        job = row["job"]
        trained = [each[f"eval/reward/{job['reward']}"] for each in row["evaluations"]]
        table.append(
            [
                f"`{job['label']}`",
                job["tags"]["prior"],
                str(job["seed"]),
                f"{trained[0]:.2f} → {trained[-1]:.2f}",
                f"{100 * _gain(row) / free[job['seed']]:.0f} %" if job["seed"] in free else "",
                _lowest(row, "hps", 3),
                _lowest(row, "pickscore", 1),
            ]
        )
    return table


def _gain(row: Row) -> float:
    name = f"eval/reward/{row['job']['reward']}"
    return row["evaluations"][-1][name] - row["evaluations"][0][name]


def _lowest(row: Row, name: str, digits: int) -> str:
    """Return the held-out score before training, its lowest one after it began, and the last."""
    scores = [each[f"eval/reward/{name}"] for each in row["evaluations"]]
    shown = (scores[0], min(scores[1:]), scores[-1])
    text = ", ".join(f"{score:.{digits}f}" for score in shown)
    return f"**{text}**" if min(scores[1:]) >= scores[0] else text


TABLES: Mapping[str, Sequence[Callable[[Sequence[Row]], list[list[str]]]]] = {
    "training": (training_table, reward_table),
    "gradients": (gradient_table,),
    "hacking": (hacking_table,),
}


def print_tables(results: Mapping[str, Sequence[Row]]) -> None:
    """Print the tables of each part that has results, as Markdown."""
    for part, rows in results.items():
        if not any(row["job"]["part"] == part for row in rows):
            continue
        for make in TABLES[part]:
            print_table(make(rows))


def draw_figures(results: Mapping[str, Sequence[Row]], folder: Path) -> None:
    """Write ``training.png`` and ``gradients.png`` for the parts that have results."""
    folder.mkdir(parents=True, exist_ok=True)
    if found := outcomes(results.get("training", ())):
        _training_figure(found).savefig(folder / "training.png", dpi=DOTS_PER_INCH)
    if rows := results.get("gradients"):
        _gradient_figure(_by_scheduler(rows)).savefig(folder / "gradients.png", dpi=DOTS_PER_INCH)


def _training_figure(found: Mapping[str, Mapping[str, Mapping[int, Outcome]]]) -> Figure:
    """Draw the gain of each run and the means over seeds, a panel for each trained reward."""
    rewards = list(next(iter(found.values())))
    mean = {
        path: fmean(run.trained for run in mean_over_rewards(runs).values()) for path, runs in found.items()
    }
    paths = sorted(mean, key=lambda path: mean[path])
    figure = Figure(figsize=(9.0, 4.2), layout="constrained")
    panels = figure.subplots(1, len(rewards), sharey=True, squeeze=False)[0]
    for axes, reward in zip(panels, rewards, strict=True):
        for index, (name, label) in enumerate(
            (("trained", "trained reward"), ("heldout", "held-out rewards"))
        ):
            for position, path in enumerate(paths):
                gains = [getattr(run, name) for run in found[path][reward].values()]
                height = position + 0.14 - 0.28 * index
                style = {"color": COLOURS[index], "marker": MARKERS[index], "linestyle": ""}
                axes.plot(gains, [height] * len(gains), markersize=3, alpha=0.5, **style)
                axes.plot([fmean(gains)], [height], markersize=6, label="" if position else label, **style)
        axes.axvline(0, color="grey", linewidth=0.8)
        axes.set(title=f"{reward} trained", xlabel="gain, standard deviations")
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_yticks(range(len(paths)), paths)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def _gradient_figure(found: Mapping[str, Mapping[str, Row]]) -> Figure:
    """Draw each path's cosine with the full chain's gradient and its variance per FLOP, by scheduler."""
    paths = list(dict.fromkeys(path for runs in found.values() for path in runs))[::-1]
    figure = Figure(figsize=(9.0, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for index, (scheduler, runs) in enumerate(found.items()):
        shown = [path for path in paths if path in runs]
        style = {"marker": MARKERS[index], "color": COLOURS[index], "linestyle": "", "markersize": 6}
        positions = [paths.index(path) for path in shown]
        left.plot([runs[path]["cosine_of_mean"] for path in shown], positions, label=scheduler, **style)
        right.plot([_variance_per_flop(runs, path) for path in shown], positions, **style)
    left.set(xlabel="cosine of the mean gradient with that of all steps")
    right.set(xlabel="variance at equal FLOPs, relative to that of last")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.set_yticks(range(len(paths)), paths)
    figure.legend(loc="outside lower center", ncols=len(found), frameon=False)
    return figure
