"""What does a distilled model of four steps gain for each second of training?

    python -m benchmarks.few_steps --time-limit 60          # as often as it takes
    python -m benchmarks.few_steps --table --page docs/results.md
    python -m benchmarks.few_steps --output runs/short --short --seeds 2     # a test of the command

`shapes_pickscore` (20 guided steps, gradient through the last one) beside `shapes_4steps` (the same base
model with the adapter ``four_steps``: four steps without guidance, gradient through all of them), each of
three rewards trained by itself at the recipe's learning rate, on test prompts. The distilled model takes more
updates, which are cheaper.
Each finished run is a line of OUTPUT/few_steps.jsonl, and a second start measures only what is missing.
``--processes`` runs several at once, each with one thread; then their CPU seconds are those of a machine that
is shared alike. Intervals are those of a mean over seeds and prompts
(`vader_ray.metrics.core.statistics.crossed_interval`).
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
    draw_band,
    grouped,
    panels,
    prompt_gains,
    save,
)
from benchmarks.pages import figures_folder, show, what_was_measured
from benchmarks.training_runs import REWARDS, Job, Results, measure_training

RECIPES = {
    "20 guided steps, K = 1": ("shapes_pickscore", 16),
    "4 steps, K = 4": ("shapes_4steps", 32),
}
"""Recipe and number of updates of each model."""
NUM_EVALUATIONS = 4
SHORT = {
    "sampling.num_frames": 2,
    "videos_per_step": 1,
    "evaluation.num_test_videos": 3,
}


def jobs_of(seeds: int, *, short: bool) -> Iterator[Job]:
    """Yield the runs, seed by seed."""
    settings: dict[str, Any] = {"evaluation.num_videos": 24} | (SHORT if short else {})
    for seed in range(seeds):
        for label, (recipe, num_updates) in RECIPES.items():
            number = NUM_EVALUATIONS if short else num_updates
            for reward in REWARDS:
                yield Job("few_steps", label, recipe, settings, reward, seed=seed, num_updates=number,
                          every=number // NUM_EVALUATIONS, prompts="test")  # fmt: skip


def gain(runs: Sequence[Row], reward: str, index: int) -> Estimate:
    """Return the gain of the mean reward since before training, in the reward's own unit."""
    return Estimate.over_seeds_and_prompts(prompt_gains(runs, f"eval/reward/{reward}", index))


def mean_of(runs: Sequence[Row], name: str, index: int) -> float:
    """Return the mean of a number of an evaluation over seeds."""
    return fmean(row["evaluations"][index][name] for row in runs)


def few_steps_table(rows: Sequence[Row]) -> list[list[str]]:
    """Return gains, costs, and the gain for each CPU second."""
    table = [["model", "trained reward", "seeds", "updates", "before", "gain", "CPU seconds of training",
              "gain for 100 CPU seconds"]]  # fmt: skip
    for (label, reward), runs in grouped(rows).items():
        seconds, found = mean_of(runs, "train_cpu_seconds", -1), gain(runs, reward, -1)
        table.append(
            [
                label,
                reward,
                str(len(runs)),
                str(runs[0]["evaluations"][-1]["step"]),
                f"{mean_of(runs, f'eval/reward/{reward}', 0):.3f}",
                found.interval_text(3),
                f"{seconds:.0f}",
                f"{100 * found.mean / seconds:+.3f}".replace("-", "−"),
            ]
        )
    return table


def draw(rows: Sequence[Row], folder: Path) -> Path:
    """Draw the mean reward against CPU seconds, with the interval of its gain; return the file."""
    labels = list(RECIPES)
    figure, axes = panels(REWARDS, "CPU seconds of training steps", "mean reward, test prompts", labels)
    for (label, reward), runs in grouped(rows).items():
        index, each = labels.index(label), axes[REWARDS.index(reward)]
        points = range(len(runs[0]["evaluations"]))
        before = mean_of(runs, f"eval/reward/{reward}", 0)
        found = [gain(runs, reward, point) for point in points]
        shifted = [Estimate(before + part.mean, before + part.low, before + part.high) for part in found]
        draw_band(each, [mean_of(runs, "train_cpu_seconds", point) for point in points], shifted, index)
    return save(figure, folder / "few_steps.png")


def main(options: Options) -> None:
    """Measure what is missing; print the table and draw the figure."""
    results, jobs = Results(options.output, "few_steps"), list(jobs_of(options.seeds, short=options.short))
    results.run(jobs, measure_training, processes=options.processes, deadline=options.deadline)
    if rows := results.found(jobs):
        figure = draw(rows, figures_folder(options.page, "few_steps", options.output))
        show("few_steps", [few_steps_table(rows)], [figure], options.page, what_was_measured(rows))


if __name__ == "__main__":
    run_command("few_steps", main, seeds=3)
