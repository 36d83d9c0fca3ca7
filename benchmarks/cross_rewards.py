"""Train on one reward, measure all: cross-reward matrix, hacking index, unseen prompts, diversity.

    python -m benchmarks.cross_rewards --time-limit 60        # as often as it takes
    python -m benchmarks.cross_rewards --table --page docs/results.md
    python -m benchmarks.cross_rewards --output runs/short --short --seeds 2     # a test of the command

Each reward is trained alone by the packaged recipe that trains it (`shapes_hps` where there is none),
without a guard, and all are measured on test prompts after the last step. Each finished run is a line of
OUTPUT/training.jsonl, and a second start measures only what is missing. Gains are in standard deviations
of the base model's scores over prompts; intervals are those of a mean over seeds and prompts
(`vader_ray.metrics.core.statistics`, functions ``crossed_interval`` and ``hacking_index``).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.command import Options, run_command
from benchmarks.estimates import (
    Estimate,
    Row,
    diversity_change,
    draw_interval,
    effect_sizes,
    grouped,
    panels,
    percent,
    prompt_gains,
    save,
)
from benchmarks.pages import figures_folder, show, what_was_measured
from benchmarks.training_runs import Job, Results, measure_training
from vader_ray.config import RECIPES, load
from vader_ray.metrics.core.statistics import hacking_index
from vader_ray.orchestration.reporting.figures import Cell, heat_map

REWARDS = ("hps", "aesthetic", "pickscore", "vjepa", "video_reward")
BASE = "shapes_hps"
SHORT = {
    "sampling.num_inference_steps": 4,
    "videos_per_step": 1,
    "evaluation.num_videos": 3,
    "evaluation.num_test_videos": 3,
}
CAPTIONS = ("shape", "colour", "direction", "speed", "landmark")
PROMPTS = {"train": "training prompts, other noise", "eval": "test prompts"}


def recipe_of(reward: str) -> str:
    """Return the packaged recipe that trains a reward alone, with the model and the prompts of `BASE`."""
    base = load(BASE)
    for path in sorted(RECIPES.glob("shapes_*.yaml")):
        found = load(path.stem)
        if [each.name for each in found.rewards] == [reward] and (found.model, found.prompts) == (
            base.model,
            base.prompts,
        ):
            return path.stem
    return BASE


def training_jobs(seeds: int, *, short: bool) -> list[Job]:
    """Return the runs, seed by seed."""
    jobs = []
    for seed in range(seeds):
        for reward in REWARDS:
            recipe = recipe_of(reward)
            steps = 2 if short else load(recipe).num_steps
            settings: dict[str, Any] = {"eval_metrics": [{"metric": "vader_ray.shapes.caption_accuracy"}]}
            jobs.append(
                Job("training", recipe, recipe, settings | (SHORT if short else {}), reward, REWARDS,
                    seed=seed, num_updates=steps, every=steps, prompts="test", more_prompts="train")
            )  # fmt: skip
    return jobs


def index_of(runs: Sequence[Row], reward: str) -> float:
    """Return the hacking index of all seeds together."""
    gains = {name: [fmean(own) for own in effect_sizes(runs, f"eval/reward/{name}")] for name in REWARDS}
    return hacking_index(gains[reward], [gain for name in REWARDS if name != reward for gain in gains[name]])


def reward_table(rows: Sequence[Row]) -> list[list[str]]:
    """Return a row for each trained reward: gains on both sets of prompts, hacking index, metrics."""
    gains = [f"gain on {name}" for name in PROMPTS.values()]
    metrics = ["change of diversity", "motion", *(f"caption accuracy: {part}" for part in CAPTIONS)]
    table = [["trained reward", "recipe", "seeds", "before", *gains, "hacking index", *metrics]]
    for (recipe, reward), runs in grouped(rows).items():
        index, metric = index_of(runs, reward), f"reward/{reward}"
        table.append(
            [
                reward,
                f"`{recipe}`",
                str(len(runs)),
                f"{fmean(row['evaluations'][0][f'eval/{metric}'] for row in runs):.3f}",
                *(_gain(runs, f"{prompts}/{metric}") for prompts in PROMPTS),
                f"{index:.2f}" if isfinite(index) else "no gain",
                percent(fmean(diversity_change(row) for row in runs)),
                _gain(runs, "eval/motion"),
                *(_gain(runs, f"eval/caption_accuracy/{part}") for part in CAPTIONS),
            ]
        )
    return table


def _gain(runs: Sequence[Row], metric: str) -> str:
    return Estimate.over_seeds_and_prompts(prompt_gains(runs, metric)).interval_text(3)


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw the matrix, and the gains on training and test prompts; return the files."""
    runs = {reward: own for (_, reward), own in grouped(rows).items()}
    estimates = [
        [Estimate.over_seeds_and_prompts(effect_sizes(own, f"eval/reward/{name}")) for name in REWARDS]
        for own in runs.values()
    ]
    cells = [
        [Cell(each.mean, each.half_width if isfinite(each.low) else None, name == reward)
         for name, each in zip(REWARDS, row, strict=True)]
        for reward, row in zip(runs, estimates, strict=True)
    ]  # fmt: skip
    indices = [index_of(own, reward) for reward, own in runs.items()]
    notes = [f"{index:.2f}" if isfinite(index) else "–" for index in indices]
    figure = heat_map(
        cells,
        rows=list(runs),
        columns=REWARDS,
        title="Trained (rows) and measured rewards",
        unit="gain in standard deviations ± half of the 95 % interval",
        notes=("hacking index", notes),
    )
    matrix = save(figure, folder / "cross_rewards.png")
    figure, (axes,) = panels(["Unseen prompts"], "", "gain in standard deviations", list(PROMPTS.values()))
    for x, (reward, own) in enumerate(runs.items()):
        for index, prompts in enumerate(PROMPTS):
            gain = Estimate.over_seeds_and_prompts(effect_sizes(own, f"{prompts}/reward/{reward}"))
            draw_interval(axes, x - 0.1 + 0.2 * index, gain, index)
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set_xticks(range(len(runs)), [name.replace("_", "\n") for name in runs])
    figure.set_size_inches(5.5, 3.6)
    return [matrix, save(figure, folder / "unseen_prompts.png")]


def main(options: Options) -> None:
    """Measure what is missing; print the table and draw the figures."""
    training, jobs = Results(options.output, "training"), training_jobs(options.seeds, short=options.short)
    training.run(jobs, measure_training, processes=options.processes, deadline=options.deadline)
    if rows := training.found(jobs):
        figures = draw(rows, figures_folder(options.page, "cross_rewards", options.output))
        show("cross_rewards", [reward_table(rows)], figures, options.page, what_was_measured(rows))


if __name__ == "__main__":
    run_command("cross_rewards", main)
