"""Reward against reward queries, denoiser calls and CPU seconds: VADER, DRaFT-LV, DDPO and Diffusion-DPO.

    python -m benchmarks.data_efficiency --time-limit 60        # as often as it takes
    python -m benchmarks.data_efficiency --table --page docs/data_efficiency.md
    python -m benchmarks.data_efficiency --output runs/short --short --seeds 2     # a test of the command

The paper's Figure 7, and its table of training and unseen prompts, with `shapes_hps` on videos of two frames,
four DDIM steps with η = 1, and three rewards. Each finished run is a line of OUTPUT/tuning.jsonl or
OUTPUT/training.jsonl, and a second start measures only what is missing.

* ``tuning``: every method has the same budget: each of `LEARNING_RATES` with `TUNING_QUERIES` reward queries
  and a seed of its own. The rate with the highest gain on validation prompts is used.
* ``training``: the methods with gradients of the reward have `QUERIES` reward queries, the others ten times
  as many. Curves are of test prompts, by which nothing was chosen.

Intervals of gains are those of a mean over seeds and prompts (`vader_ray.metrics.core.statistics`, function
``crossed_interval``). A factor of costs is a ratio at an equal gain, paired by seed: each cost lies between
two evaluations, or has no upper bound if the run ends below the gain ("not reached"), so the factor is the
median of numbers known by bounds, with the interval of `benchmarks.estimates.median_interval`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from math import isfinite
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any

from matplotlib.ticker import PercentFormatter

from benchmarks.command import Options, run_command
from benchmarks.estimates import (
    Bounds,
    Estimate,
    Row,
    by_seed,
    diversity_change,
    draw_band,
    draw_interval,
    effect_sizes,
    first_reached,
    grouped,
    median_interval,
    panels,
    percent,
    prompt_gains,
    save,
    style,
)
from benchmarks.pages import figures_folder, show, what_was_measured
from benchmarks.training_runs import REWARDS, Job, Results, measure_training

QUERIES, TUNING_QUERIES, FACTOR = 128, 256, 10
"""Reward queries of VADER and of each run of the tuning; the baselines' budget in multiples of VADER's."""
LEARNING_RATES = (3e-4, 1e-3, 3e-3, 1e-2)
TUNING_SEED = 1000
NUM_EVALUATIONS = 16
METHODS: dict[str, dict[str, Any]] = {
    "VADER": {"algorithm.name": "vader", "sampling.truncation_depth": 4, "videos_per_step": 4},
    "DRaFT-LV": {
        "algorithm.name": "vader",
        "sampling.truncation_depth": 1,
        "sampling.num_endings": 2,
        "videos_per_step": 4,
    },
    "DDPO": {
        "algorithm.name": "ddpo",
        "algorithm.num_updates": 2,
        "algorithm.clip_range": 1e-3,
        "videos_per_step": 16,
    },
    "Diffusion-DPO": {
        "algorithm.name": "dpo",
        "algorithm.num_updates": 2,
        "algorithm.num_draws": 4,
        "algorithm.beta": 100,
        "videos_per_step": 16,
    },
}
BASELINES = ("DDPO", "Diffusion-DPO")
"""Methods without gradients of the reward."""
SHARED = {
    "sampling.num_frames": 2,
    "sampling.num_inference_steps": 4,
    "sampling.eta": 1,
    "evaluation.num_videos": 24,
    "runtime.prefix_batch_size": 16,
    "runtime.micro_batch_size": 16,
    "runtime.decode_chunk_size": 2,
}
SHORT = {"evaluation.num_videos": 4, "evaluation.num_test_videos": 4}
COSTS = {
    "reward_queries": "reward queries",
    "denoiser_calls": "denoiser calls",
    "train_cpu_seconds": "CPU seconds of training steps",
}
SHARES = (0.5, 1.0)
"""Gains at which costs are compared, in parts of VADER's mean gain at its end."""


def job_of(
    part: str,
    method: str,
    reward: str,
    rate: float,
    seed: int,
    queries: int,
    *,
    short: bool,
    size: str = "",
    more: Mapping[str, Any] = MappingProxyType({}),
) -> Job:
    """Return a run with this number of reward queries, rounded up to whole steps.

    Args:
        size: name of the videos' size, for a comparison of sizes.
        more: further overrides of the recipe.
    """
    settings = SHARED | METHODS[method] | {"optimizer.learning_rate": rate} | (SHORT if short else {}) | more
    per_step = settings["videos_per_step"] * settings.get("sampling.num_endings", 1)
    num_updates = -(-queries // per_step)
    is_tuning = part == "tuning"
    return Job(
        part,
        method,
        "shapes_hps",
        settings,
        reward=reward,
        seed=seed,
        num_updates=num_updates,
        every=num_updates if is_tuning else max(1, num_updates // NUM_EVALUATIONS),
        prompts="validation" if is_tuning else "test",
        more_prompts=None if is_tuning else "train",
        tags={"learning rate": f"{rate:g}", "size": size},
    )


def tuning_jobs(
    methods: Iterable[str],
    rewards: Iterable[str],
    *,
    short: bool,
    size: str = "",
    more: Mapping[str, Any] = MappingProxyType({}),
) -> list[Job]:
    """Return the runs that choose the learning rates; see `job_of`."""
    queries = 16 if short else TUNING_QUERIES
    rates = LEARNING_RATES[1:2] if short else LEARNING_RATES
    return [
        job_of("tuning", method, reward, rate, TUNING_SEED, queries, short=short, size=size, more=more)
        for method, reward in product(methods, rewards)
        for rate in rates
    ]


def chosen_rates(rows: Iterable[Row]) -> dict[tuple[str, str, str], float]:
    """Return the learning rate with the highest gain on validation prompts, by method, reward and size."""
    gains: dict[tuple[str, str, str], dict[float, float]] = {}
    for row in rows:
        job = row["job"]
        gain = Estimate.over_seeds_and_prompts(prompt_gains([row], f"eval/reward/{job['reward']}")).mean
        own = gains.setdefault((job["label"], job["reward"], job["tags"]["size"]), {})
        own[float(job["tags"]["learning rate"])] = gain
    return {key: max(own, key=lambda rate: own[rate]) for key, own in gains.items()}


def training_jobs(rates: Mapping[tuple[str, str, str], float], seeds: int, *, short: bool) -> Iterator[Job]:
    """Yield the runs that are compared, seed by seed."""
    queries = 16 if short else QUERIES
    for seed in range(seeds):
        for method in METHODS:
            budget = queries * ((2 if short else FACTOR) if method in BASELINES else 1)
            for reward in REWARDS:
                rate = rates[method, reward, ""]
                yield job_of("training", method, reward, rate, seed, budget, short=short)


# ---- tables


def curve(row: Row, cost: str) -> list[tuple[float, float]]:
    """Return cost and gain of each evaluation of a run."""
    metric = f"eval/reward/{row['job']['reward']}"
    first = row["evaluations"][0][metric]
    return [(each[cost], each[metric] - first) for each in row["evaluations"]]


def reached_at(row: Row, cost: str, level: float) -> Bounds:
    """Return the cost at which a run first reaches a gain."""
    first = row["evaluations"][1]
    return first_reached(curve(row, cost), level, first[cost] / first["step"])


def gains_table(rows: Sequence[Row]) -> list[list[str]]:
    """Return final gains of the trained reward on test and on training prompts."""
    table = [["method", "reward", "reward queries", "before", "gain on test prompts",
              "gain on training prompts", "learning rate", "seeds"]]  # fmt: skip
    for (method, reward), runs in grouped(rows).items():
        metric = f"reward/{reward}"
        table.append(
            [
                method,
                reward,
                _mean_cost(runs, "reward_queries"),
                f"{fmean(row['evaluations'][0][f'eval/{metric}'] for row in runs):.3f}",
                Estimate.over_seeds_and_prompts(prompt_gains(runs, f"eval/{metric}")).interval_text(3),
                Estimate.over_seeds_and_prompts(prompt_gains(runs, f"train/{metric}")).interval_text(3),
                runs[0]["job"]["tags"]["learning rate"],
                str(len(runs)),
            ]
        )
    return table


def effects_table(rows: Sequence[Row]) -> list[list[str]]:
    """Return costs, the change of diversity, and the gains of the rewards that were not trained."""
    table = [["method", "reward", "denoiser calls", "CPU seconds", "change of diversity",
              "other rewards, in standard deviations"]]  # fmt: skip
    for (method, reward), runs in grouped(rows).items():
        others = [
            f"{name} "
            + Estimate.over_seeds_and_prompts(effect_sizes(runs, f"eval/reward/{name}")).interval_text()
            for name in REWARDS
            if name != reward
        ]
        table.append(
            [
                method,
                reward,
                _mean_cost(runs, "denoiser_calls"),
                _mean_cost(runs, "train_cpu_seconds"),
                percent(fmean(diversity_change(row) for row in runs)),
                "; ".join(others),
            ]
        )
    return table


def _mean_cost(runs: Sequence[Row], cost: str) -> str:
    return f"{fmean(row['evaluations'][-1][cost] for row in runs):,.0f}"


def factor_table(rows: Sequence[Row]) -> list[list[str]]:
    """Return how many times VADER's reward queries, calls and seconds the others need for an equal gain."""
    table = [["reward", "method", "gain", "reached by VADER in", "reached in", *(
        f"factor of {name}" for name in COSTS.values())]]  # fmt: skip
    runs = grouped(rows)
    for (method, reward), own in runs.items():
        vader = runs.get(("VADER", reward), [])
        seeds = {row["job"]["seed"] for row in vader} & {row["job"]["seed"] for row in own}
        if method == "VADER" or not seeds:
            continue
        pairs = [[row for row in each if row["job"]["seed"] in seeds] for each in (own, vader)]
        final = fmean(curve(row, "reward_queries")[-1][1] for row in pairs[1])
        for share in SHARES if final > 0 else ():
            level = share * final
            reached = [
                [isfinite(reached_at(row, "reward_queries", level).high) for row in each] for each in pairs
            ]
            table.append(
                [
                    reward,
                    method,
                    f"{level:+.3f} ({100 * share:.0f} % of VADER's)",
                    *(f"{sum(each)} of {len(each)} seeds" for each in reversed(reached)),
                    *(median_interval(ratios(*pairs, cost, level)).text() for cost in COSTS),
                ]
            )
    return table


def ratios(own: Sequence[Row], vader: Sequence[Row], cost: str, level: float) -> list[Bounds]:
    """Return the cost of a method divided by VADER's at an equal gain, seed by seed."""
    return [
        Bounds.ratio(reached_at(one, cost, level), reached_at(other, cost, level))
        for one, other in zip(by_seed(own), by_seed(vader), strict=True)
    ]


# ---- figures


def draw_figures(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw the rewards against each cost, gains on both sets of prompts, and diversity; return the files."""
    return [
        *(_draw_curves(rows, cost, label, folder / f"{cost}.png") for cost, label in COSTS.items()),
        _draw_generalization(rows, folder / "generalization.png"),
        _draw_diversity(rows, folder / "diversity.png"),
    ]


def _draw_curves(rows: Sequence[Row], cost: str, label: str, path: Path) -> Path:
    runs = grouped(rows)
    figure, axes = panels(REWARDS, label, "gain on test prompts", list(METHODS))
    for each, reward in zip(axes, REWARDS, strict=True):
        for index, method in enumerate(METHODS):
            own = runs.get((method, reward), [])
            if not own:
                continue
            points = range(1, len(own[0]["evaluations"]))
            x = [fmean(row["evaluations"][point][cost] for row in own) for point in points]
            y = [
                Estimate.over_seeds_and_prompts(prompt_gains(own, f"eval/reward/{reward}", point))
                for point in points
            ]
            draw_band(each, x, y, index)
        each.axhline(0, color="grey", linewidth=0.8)
        each.set_xscale("log")
        each.xaxis.set_major_formatter("{x:,.0f}")
    return save(figure, path)


def _draw_generalization(rows: Sequence[Row], path: Path) -> Path:
    sets = {"train": "training prompts, other noise", "eval": "test prompts"}
    figure, axes = panels(REWARDS, "", "gain", list(sets.values()))
    for each, reward in zip(axes, REWARDS, strict=True):
        for (method, name), own in grouped(rows).items():
            for index, prompts in enumerate(sets):
                if name == reward:
                    gain = Estimate.over_seeds_and_prompts(prompt_gains(own, f"{prompts}/reward/{reward}"))
                    x = list(METHODS).index(method) - 0.12 + 0.24 * index
                    draw_interval(each, x, gain, index)
        each.axhline(0, color="grey", linewidth=0.8)
        each.set_xticks(range(len(METHODS)), [name.replace("-", "-\n") for name in METHODS], fontsize=8)
    return save(figure, path)


def _draw_diversity(rows: Sequence[Row], path: Path) -> Path:
    figure, axes = panels(REWARDS, "gain in standard deviations", "change of diversity", list(METHODS))
    for each, reward in zip(axes, REWARDS, strict=True):
        for (method, name), own in grouped(rows).items():
            if name == reward:
                gains = [fmean(gains) for gains in effect_sizes(own, f"eval/reward/{reward}")]
                changes = [diversity_change(row) for row in own]
                look = style(list(METHODS).index(method))
                each.plot(gains, changes, linestyle="", alpha=0.45, **look)
                each.plot([fmean(gains)], [fmean(changes)], linestyle="", **look | {"markersize": 9})
        each.axhline(0, color="grey", linewidth=0.8)
        each.axvline(0, color="grey", linewidth=0.8)
        each.yaxis.set_major_formatter(PercentFormatter(1.0))
    return save(figure, path)


def main(options: Options) -> None:
    """Measure what is missing; print the tables and draw the figures."""
    tuning, training = Results(options.output, "tuning"), Results(options.output, "training")
    jobs = tuning_jobs(METHODS, REWARDS, short=options.short)
    if not tuning.run(jobs, measure_training, processes=options.processes, deadline=options.deadline):
        return
    tuned = tuning.found(jobs)
    jobs = list(training_jobs(chosen_rates(tuned), options.seeds, short=options.short))
    training.run(jobs, measure_training, processes=options.processes, deadline=options.deadline)
    if not (rows := training.found(jobs)):
        return
    paths = draw_figures(rows, figures_folder(options.page, "data_efficiency", options.output))
    tables = [gains_table(rows), factor_table(rows), effects_table(rows)]
    measured = f"{what_was_measured(rows)} Learning rates: {what_was_measured(tuned)}"
    show("data_efficiency", tables, paths, options.page, measured)


if __name__ == "__main__":
    run_command("data_efficiency", main)
