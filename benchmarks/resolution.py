"""Does the gap between VADER and DDPO grow with the size of the generated video? (Figure 4 of the paper.)

    python -m benchmarks.resolution --time-limit 60        # as often as it takes
    python -m benchmarks.resolution --table --page docs/results.md
    python -m benchmarks.resolution --output runs/short --short --seeds 2     # a test of the command

Both methods of `benchmarks.data_efficiency` have the same number of reward queries at every size: the
recipe's height and width times `SCALES`, of which the denoiser was trained at 1 alone. The learning rate
is tuned for each method and size with the same budget as there. The gap is the difference of the gains on
test prompts, seed by seed and prompt by prompt, in standard deviations of the base model's scores at that
size; its interval is that of a mean over seeds and prompts. Each finished run is a line of
OUTPUT/tuning.jsonl or OUTPUT/training.jsonl, and a second start measures only what is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.command import Options, run_command
from benchmarks.data_efficiency import QUERIES, chosen_rates, job_of, tuning_jobs
from benchmarks.estimates import Estimate, Row, by_seed, draw_band, effect_sizes, panels, save
from benchmarks.pages import figures_folder, show, what_was_measured
from benchmarks.training_runs import Job, Results, measure_training
from vader_ray.config import load

METHODS = ("VADER", "DDPO")
REWARDS = ("hps", "aesthetic")
SCALES = (0.5, 1.0, 1.5, 2.0)
"""Factors of the recipe's height and width."""


def sizes(*, short: bool) -> dict[str, dict[str, Any]]:
    """Return the overrides of each size by its name, ``32 × 32`` for height and width."""
    recipe = load("shapes_hps").sampling
    found = {}
    for scale in SCALES[:2] if short else SCALES:
        height, width = (round(scale * side) for side in (recipe.height, recipe.width))
        found[f"{height} × {width}"] = {"sampling.height": height, "sampling.width": width}
    return found


def all_tuning_jobs(*, short: bool) -> list[Job]:
    """Return the runs that choose the learning rates."""
    return [
        job
        for size, more in sizes(short=short).items()
        for job in tuning_jobs(METHODS, REWARDS, short=short, size=size, more=more)
    ]


def training_jobs(rates: Mapping[tuple[str, str, str], float], seeds: int, *, short: bool) -> Iterator[Job]:
    """Yield the runs that are compared, seed by seed."""
    queries = 16 if short else QUERIES
    for seed in range(seeds):
        for size, more in sizes(short=short).items():
            for method in METHODS:
                for reward in REWARDS:
                    rate = rates[method, reward, size]
                    yield job_of("training", method, reward, rate, seed, queries, short=short, size=size,
                                 more=more)  # fmt: skip


Gains = dict[str, dict[str, tuple[int, list[list[float]]]]]
"""Elements of the latents, and gain of each seed and prompt in standard deviations, by size and method."""


def gains_of(rows: Sequence[Row], reward: str) -> Gains:
    """Return the gains of a reward by size and method, of the seeds that both methods have."""
    runs: dict[str, dict[str, list[Row]]] = {}
    for row in by_seed(rows):
        if row["job"]["reward"] == reward:
            own = runs.setdefault(row["job"]["tags"]["size"], {method: [] for method in METHODS})
            own[row["job"]["label"]].append(row)
    found: Gains = {}
    for size, methods in runs.items():
        seeds = set.intersection(*({row["job"]["seed"] for row in own} for own in methods.values()))
        if seeds:
            found[size] = {
                method: (own[0]["latent_elements"], effect_sizes(
                    [row for row in own if row["job"]["seed"] in seeds], f"eval/reward/{reward}"))
                for method, own in methods.items()
            }  # fmt: skip
    return dict(sorted(found.items(), key=lambda item: item[1][METHODS[0]][0]))


def gap(gains: Mapping[str, tuple[int, list[list[float]]]]) -> Estimate:
    """Return VADER's gain minus DDPO's, paired by seed and prompt."""
    pairs = zip(*(gains[method][1] for method in METHODS), strict=True)
    return Estimate.over_seeds_and_prompts(
        [[one - other for one, other in zip(*pair, strict=True)] for pair in pairs]
    )


def size_table(rows: Sequence[Row]) -> list[list[str]]:
    """Return the gains of both methods and the gap at each size."""
    table = [["reward", "height × width", "elements of the latents", "seeds",
              *(f"gain of {method}" for method in METHODS), "gap"]]  # fmt: skip
    for reward in REWARDS:
        for size, gains in gains_of(rows, reward).items():
            elements, values = gains[METHODS[0]]
            table.append(
                [
                    reward,
                    size,
                    f"{elements:,}",
                    str(len(values)),
                    *(
                        Estimate.over_seeds_and_prompts(gains[method][1]).interval_text()
                        for method in METHODS
                    ),
                    gap(gains).interval_text(),
                ]
            )
    return table


def draw(rows: Sequence[Row], path: Path) -> Path:
    """Draw the gains of both methods and the gap against the elements of the latents; return the file."""
    labels = [*METHODS, "gap"]
    figure, axes = panels(
        REWARDS, "height × width, elements of the latents", "gain in standard deviations", labels
    )
    for each, reward in zip(axes, REWARDS, strict=True):
        found = gains_of(rows, reward)
        x = [gains[METHODS[0]][0] for gains in found.values()]
        for index, label in enumerate(labels):
            y = [
                gap(gains) if label == "gap" else Estimate.over_seeds_and_prompts(gains[label][1])
                for gains in found.values()
            ]
            draw_band(each, x, y, index)
        each.axhline(0, color="grey", linewidth=0.8)
        each.set_xscale("log", base=2)
        each.set_xticks(x, [f"{size}\n{elements:,}" for size, elements in zip(found, x, strict=True)])
    return save(figure, path)


def main(options: Options) -> None:
    """Measure what is missing; print the table and draw the figure."""
    tuning, training = Results(options.output, "tuning"), Results(options.output, "training")
    jobs = all_tuning_jobs(short=options.short)
    if not tuning.run(jobs, measure_training, processes=options.processes, deadline=options.deadline):
        return
    tuned = tuning.found(jobs)
    jobs = list(training_jobs(chosen_rates(tuned), options.seeds, short=options.short))
    training.run(jobs, measure_training, processes=options.processes, deadline=options.deadline)
    if rows := training.found(jobs):
        figure = draw(rows, figures_folder(options.page, "resolution", options.output) / "resolution.png")
        measured = f"{what_was_measured(rows)} Learning rates: {what_was_measured(tuned)}"
        show("resolution", [size_table(rows)], [figure], options.page, measured)


if __name__ == "__main__":
    run_command("resolution", main)
