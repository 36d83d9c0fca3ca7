"""How many denoising steps K should carry gradient, at equal steps and at equal CPU time?

    python -m benchmarks.truncation_depth --time-limit 60        # as often as it takes
    python -m benchmarks.truncation_depth --table --page docs/results.md
    python -m benchmarks.truncation_depth --output runs/short --short --seeds 2     # a test of the command

The paper's ablation of K with `shapes_hps`, ten denoising steps and three rewards, on test prompts. All
values of K have the same videos per step, so equal steps are equal reward queries. The largest of `DEPTHS`,
which is all denoising steps, takes `NUM_STEPS` training steps. Every other K goes on until its training has
taken as many CPU seconds, by the seconds per step that the runs of the part ``cost`` measured, one at a time.
Each finished run is a line of OUTPUT/cost.jsonl or OUTPUT/training.jsonl, and a second start measures only
what is missing. Gains are in standard deviations of the base model's scores over prompts; intervals are those
of a mean over seeds and prompts (`vader_ray.metrics.core.statistics`, function ``crossed_interval``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.command import Options, run_command
from benchmarks.estimates import (
    Estimate,
    Row,
    diversity_change,
    draw_band,
    effect_sizes,
    grouped,
    mean_effects,
    panels,
    percent,
    save,
)
from benchmarks.pages import figures_folder, show, what_was_measured
from benchmarks.training_runs import REWARDS, Job, Results, measure_training

DEPTHS = (1, 2, 5, 10)
NUM_STEPS, NUM_COST_STEPS, NUM_EVALUATIONS = 16, 3, 2
"""Steps of the largest K, of the runs that measure seconds, and evaluations up to `NUM_STEPS`."""
SHARED = {"evaluation.num_videos": 24, "sampling.num_inference_steps": DEPTHS[-1]}
SHORT = {
    "sampling.num_frames": 2,
    "videos_per_step": 1,
    "evaluation.num_test_videos": 3,
}


def job_of(part: str, depth: int, reward: str, seed: int, num_steps: int, *, short: bool) -> Job:
    """Return a run with K denoising steps that carry gradient."""
    settings: dict[str, Any] = SHARED | {"sampling.truncation_depth": depth} | (SHORT if short else {})
    steps = equal_steps(short=short)
    every = num_steps if part == "cost" else max(1, steps // NUM_EVALUATIONS)
    label = f"K = {depth}"
    return Job(part, label, "shapes_hps", settings, reward, seed=seed, num_updates=num_steps, every=every,
               prompts="test")  # fmt: skip


def equal_steps(*, short: bool) -> int:
    """Return the number of steps at which all K are compared."""
    return 2 if short else NUM_STEPS


def cost_jobs(*, short: bool) -> list[Job]:
    """Return the runs that measure the seconds of a step."""
    return [job_of("cost", depth, REWARDS[0], 0, NUM_COST_STEPS, short=short) for depth in DEPTHS]


def training_jobs(costs: Sequence[Row], seeds: int, *, short: bool) -> Iterator[Job]:
    """Yield the runs that are compared, seed by seed, as long as the costs allow."""
    steps = equal_steps(short=short)
    seconds = {row["job"]["label"]: row["evaluations"][-1]["train_cpu_seconds"] for row in costs}
    most = seconds[f"K = {DEPTHS[-1]}"]
    for seed in range(seeds):
        for depth in DEPTHS:
            number = max(steps, round(steps * most / seconds[f"K = {depth}"]))
            for reward in REWARDS:
                yield job_of("training", depth, reward, seed, number, short=short)


def at_step(runs: Sequence[Row], step: int) -> int:
    """Return the number of the evaluation after a step."""
    return next(index for index, each in enumerate(runs[0]["evaluations"]) if each["step"] >= step)


def depth_table(rows: Sequence[Row], steps: int) -> list[list[str]]:
    """Return the gains at equal steps and at equal CPU time, and what was not trained."""
    equal_steps = (f"gain after {steps} steps", "CPU seconds of these")
    equal_time = ("steps in equal time", "gain", "gain of the other rewards", "change of diversity")
    table = [["K", "reward", "seeds", *equal_steps, *equal_time]]
    for (depth, reward), runs in grouped(rows).items():
        early, last = at_step(runs, steps), runs[0]["evaluations"][-1]
        others = mean_effects(runs, [name for name in REWARDS if name != reward])
        table.append(
            [
                depth,
                reward,
                str(len(runs)),
                _gain(runs, reward, early),
                f"{fmean(row['evaluations'][early]['train_cpu_seconds'] for row in runs):.0f}",
                str(last["step"]),
                _gain(runs, reward, -1),
                Estimate.over_seeds_and_prompts(others).interval_text(),
                percent(fmean(diversity_change(row) for row in runs)),
            ]
        )
    return table


def _gain(runs: Sequence[Row], reward: str, index: int) -> str:
    return _estimate(runs, reward, index).interval_text()


def _estimate(runs: Sequence[Row], reward: str, index: int) -> Estimate:
    return Estimate.over_seeds_and_prompts(effect_sizes(runs, f"eval/reward/{reward}", index))


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw the gains against steps, reward queries and CPU seconds; return the files."""
    axes_of = {
        "step": "steps",
        "reward_queries": "reward queries",
        "train_cpu_seconds": "CPU seconds of training steps",
    }
    labels, files = [f"K = {depth}" for depth in DEPTHS], []
    for cost, name in axes_of.items():
        figure, axes = panels(REWARDS, name, "gain in standard deviations", labels)
        for (depth, reward), runs in grouped(rows).items():
            index, each = labels.index(depth), axes[REWARDS.index(reward)]
            points = range(len(runs[0]["evaluations"]))
            x = [fmean(row["evaluations"][point][cost] for row in runs) for point in points]
            y = [_estimate(runs, reward, point) for point in points]
            draw_band(each, x, y, index)
        files.append(save(figure, folder / f"{cost}.png"))
    return files


def main(options: Options) -> None:
    """Measure what is missing; print the table and draw the figures."""
    cost, training = Results(options.output, "cost"), Results(options.output, "training")
    costs = cost_jobs(short=options.short)
    # one at a time, so that the seconds are those of one process
    if not cost.run(costs, measure_training, processes=1, deadline=options.deadline):
        return
    jobs = list(training_jobs(cost.found(costs), options.seeds, short=options.short))
    training.run(jobs, measure_training, processes=options.processes, deadline=options.deadline)
    if rows := training.found(jobs):
        figures = draw(rows, figures_folder(options.page, "truncation_depth", options.output))
        tables = [depth_table(rows, equal_steps(short=options.short))]
        show("truncation_depth", tables, figures, options.page, what_was_measured(rows))


if __name__ == "__main__":
    run_command("truncation_depth", main)
