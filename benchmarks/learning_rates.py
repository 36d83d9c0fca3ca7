"""Which learning rate suits each packaged shapes recipe? Whole training runs, judged on validation prompts.

    python -m benchmarks.learning_rates --processes 2 --time-limit 60     # as often as it takes
    python -m benchmarks.learning_rates --table --page docs/results.md
    python -m benchmarks.learning_rates --output runs/short --short      # a test of the command

Every recipe is trained to its last step with each rate, on one thread, and evaluated in the middle and at the
end. Each finished run is a line of OUTPUT/learning_rates.jsonl, and a second start measures only what is
missing. ``--table`` prints all of them, also those of earlier versions of a recipe. The test prompts are not
used: results reported on them are not those by which the rate was chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.command import Output, Page, Processes, Short, Table, TimeLimit, deadline_of
from benchmarks.estimates import Row
from benchmarks.pages import check_page, show, what_was_measured
from benchmarks.results import recipes
from benchmarks.training_runs import Job, Results, measure_training
from vader_ray.config import load

RATES = (1e-3, 2e-3, 4e-3)
SHORT = {
    "videos_per_step": 1,
    "sampling.num_inference_steps": 2,
    "sampling.truncation_depth": 1,
    "evaluation.num_videos": 2,
}


def job_of(recipe: str, rate: float, *, short: bool) -> Job:
    """Return the run of a recipe with a learning rate."""
    config = load(recipe)
    measured = [*config.rewards, *config.eval_rewards]
    settings: dict[str, Any] = {
        "optimizer.learning_rate": rate,
        "rewards": [each.model_dump(mode="json") for each in config.rewards],
        "eval_rewards": [each.model_dump(mode="json") for each in config.eval_rewards],
        "eval_metrics": [each.model_dump(mode="json") for each in config.eval_metrics],
    }
    number = 2 if short else config.num_steps
    return Job(
        "learning_rates",
        recipe,
        recipe,
        settings | (SHORT if short else {}),
        reward=config.rewards[0].name,
        rewards=tuple(each.name for each in measured),
        num_updates=number,
        every=number // 2,
        tags={"learning_rate": f"{rate:g}"},
    )


def jobs_of(names: Sequence[str], rates: Sequence[float], *, short: bool) -> Iterator[Job]:
    """Yield the runs, recipe by recipe."""
    for name in names:
        for rate in rates:
            yield job_of(name, rate, short=short)


def rates_table(rows: Sequence[Row]) -> list[list[str]]:
    """Return a line for each run: every reward before training, in the middle and at the end, and every
    attribute of the captions that some video did not follow."""
    table = [["recipe", "learning rate", "rewards", "caption accuracy", "CPU seconds of training"]]
    for row in sorted(
        rows, key=lambda row: (row["job"]["recipe"], float(row["job"]["tags"]["learning_rate"]))
    ):
        job, evaluations = row["job"], row["evaluations"]
        accuracies = [
            name
            for name in evaluations[0]
            if name.startswith("eval/caption_accuracy/") and min(each[name] for each in evaluations) < 1
        ]
        table.append(
            [
                job["recipe"],
                job["tags"]["learning_rate"],
                ", ".join(
                    f"{name} {_course(evaluations, f'eval/reward/{name}', 3)}" for name in job["rewards"]
                ),
                ", ".join(
                    f"{name.rpartition('/')[2]} {_course(evaluations, name, 2)}" for name in accuracies
                ),
                f"{evaluations[-1]['train_cpu_seconds']:.0f}",
            ]
        )
    return table


def _course(evaluations: Sequence[dict[str, Any]], name: str, digits: int) -> str:
    return " → ".join(f"{each[name]:.{digits}f}" for each in evaluations).replace("-", "−")


def main(
    output: Output = Path("runs/learning_rates"),
    time_limit: TimeLimit = None,
    processes: Processes = 1,
    recipe: Annotated[list[str] | None, typer.Option(help="Only these recipes; several times.")] = None,
    rate: Annotated[list[float] | None, typer.Option(help="These rates; several times.")] = None,
    short: Short = False,
    table: Table = False,
    page: Page = None,
) -> None:
    """Measure what is missing and print the table."""
    check_page(page, "learning_rates")
    results = Results(output, "learning_rates")
    if not table:
        jobs = list(jobs_of(recipe or recipes(), rate or (RATES[:1] if short else RATES), short=short))
        results.run(jobs, measure_training, processes=processes, deadline=deadline_of(time_limit))
    if results.rows:
        measured = what_was_measured(results.rows)
        show("learning_rates", [rates_table(results.rows)], [], page, measured)


if __name__ == "__main__":
    typer.run(main)
