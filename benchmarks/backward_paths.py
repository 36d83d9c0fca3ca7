"""Backward paths at equal denoiser FLOPs: training, quality of the gradient, and a run that hacks its reward.

    python -m benchmarks.backward_paths --output runs/backward_paths             # about an hour on one core
    python -m benchmarks.backward_paths --output runs/backward_paths --part training --num-seeds 2
    python -m benchmarks.backward_paths --output runs/backward_paths --table --figures docs/backward_paths

Each finished measurement is a line of OUTPUT/PART.jsonl, and a second start measures only what is missing.

* ``training``: `shapes_wan` (UniPC) with 5 frames, 6 denoising steps and 3 rewards. A path makes as
  many updates as the denoiser FLOPs of 12 updates of ``last``, K = 1, allow. Gains are paired differences to
  the base model on 8 test prompts with two noises each, in standard deviations of the base model's scores.
* ``gradients``: the aesthetic's gradients of 4 videos with a fresh adapter, against the chain of all steps.
* ``hacking``: the run of docs/report.md that hacks its reward, with priors.

Intervals are Student's t over the seeds, 95 %. The hacking index is the mean fall of the held-out rewards
(a rise counts as 0) divided by the gain of the trained reward.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.backward_path_runs import measure
from benchmarks.backward_path_tables import draw_figures, print_tables
from benchmarks.training_runs import REWARDS, Job, Results
from vader_ray.config import load

PATHS: dict[str, dict[str, Any]] = {
    "last": {"truncation_depth": 1},
    "sparse": {"truncation_depth": 3},
    "velocity_matching": {"truncation_depth": 3},
    "refl": {},
    "uniform": {"truncation_depth": 2},
    "leap": {},
    "lagrange": {},
    "bridge": {"truncation_depth": 3},
    "drtune": {"truncation_depth": 3},
    "random": {"truncation_depth": 3},
    "ode_adjoint": {"truncation_depth": 3},
    "draft_lv": {"truncation": "last", "truncation_depth": 1, "num_endings": 2},
}
"""Settings of ``sampling``; where there is no other ``truncation``, it is the name."""
TRAINED = tuple(name for name in PATHS if name != "draft_lv")
"""Paths that train: `shapes_wan` has a scheduler that refuses several endings."""
PENALTY = {"velocity_matching": 1.0, "ode_adjoint": 1.0}
"""``algorithm.reference_penalty`` of the paths that need one."""
WEIGHTS = {"hps": 10.0, "aesthetic": 1.0, "pickscore": 0.5}
"""About 1 / standard deviation of the base model's scores, so that one penalty fits all rewards."""
NUM_UPDATES = 12
"""Updates of ``last``, which set the budget."""
TRAINING = {
    "sampling.num_frames": 5,
    "sampling.num_inference_steps": 6,
    "optimizer.learning_rate": 5e-3,
    "prompts.validation": list(load("shapes_wan").prompts.validation[::4]),
    "evaluation.num_videos": 16,
    "evaluation.every": 1000,
    "runtime.prefix_batch_size": 16,
    "runtime.micro_batch_size": 4,
}
SCHEDULERS = {
    "DDIM": ("shapes_hps", 2, "DDIMScheduler"),
    "EDM Euler": ("shapes_hps", 2, "EulerDiscreteScheduler"),
    "UniPC": ("shapes_hps", 2, "UniPCMultistepScheduler"),
    "DPM++ 2M": ("shapes_hps", 2, "DPMSolverMultistepScheduler"),
    "flow Euler": ("shapes_wan", 5, "FlowMatchEulerDiscreteScheduler"),
    "flow UniPC": ("shapes_wan", 5, "UniPCMultistepScheduler"),
}
"""Recipe, number of frames and diffusers' class, by name."""
HACKING = {
    "num_steps": 32,
    "sampling.num_inference_steps": 5,
    "optimizer.learning_rate": 8e-3,
    "evaluation.num_videos": 12,
    "evaluation.every": 4,
    "runtime.prefix_batch_size": 4,
    "runtime.micro_batch_size": 4,
}
PRIORS = (
    ("last", 0.0),
    ("velocity_matching", 30.0),
    ("velocity_matching", 10.0),
    ("velocity_matching", 100.0),
    ("last", 100.0),
)
"""Path and ``algorithm.reference_penalty`` of the runs that hack their reward."""
PARTS = ("training", "gradients", "hacking")


def path_settings(name: str, penalty: float | None = None) -> dict[str, Any]:
    """Return the overrides of a recipe that choose a path."""
    sampling = {"truncation": name, "truncation_depth": 1} | PATHS[name]
    settings = {f"sampling.{key}": value for key, value in sampling.items()}
    return settings | {"algorithm.reference_penalty": PENALTY.get(name, 0.0) if penalty is None else penalty}


def training_jobs(results: Results, num_seeds: int) -> Iterator[Job]:
    """Yield the training runs seed by seed; the cost of each path is measured first."""
    flops = dict[str, float]()
    for name in TRAINED:
        job = Job("cost", name, "shapes_wan", TRAINING | path_settings(name))
        flops[name] = results.get(job, measure)["denoiser_flops"]
    for seed in range(num_seeds):
        for name in TRAINED:
            updates = round(NUM_UPDATES * flops["last"] / flops[name])
            for reward in REWARDS:
                yield Job(
                    "training",
                    name,
                    "shapes_wan",
                    TRAINING | path_settings(name),
                    reward=reward,
                    weight=WEIGHTS[reward],
                    seed=seed,
                    num_updates=updates,
                    every=updates,
                )


def gradient_jobs() -> Iterator[Job]:
    """Yield each path under each scheduler."""
    for scheduler, (recipe, num_frames, kind) in SCHEDULERS.items():
        own = {
            "sampling.scheduler": kind,
            "sampling.num_inference_steps": 6,
            "sampling.num_frames": num_frames,
        }
        for name in PATHS:
            if name == "draft_lv" and kind.endswith("MultistepScheduler"):
                continue  # refused: its steps depend on earlier ones
            settings = own | path_settings(name)
            tags = {"scheduler": scheduler}
            yield Job("gradients", name, recipe, settings, "aesthetic", num_videos=4, tags=tags)


def hacking_jobs(num_seeds: int) -> Iterator[Job]:
    """Yield the runs that hack their reward, with and without a prior."""
    for seed in range(num_seeds):
        for name, penalty in PRIORS:
            yield Job(
                "hacking",
                name,
                "shapes_hps",
                HACKING | path_settings(name, penalty),
                reward="aesthetic",
                seed=seed,
                num_updates=HACKING["num_steps"],
                every=HACKING["evaluation.every"],
                tags={"prior": f"{penalty:g}"},
            )


def main(
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/backward_paths"),
    part: Annotated[list[str] | None, typer.Option(help="Only these parts; several times.")] = None,
    num_seeds: Annotated[int, typer.Option(min=1)] = 5,
    num_hacking_seeds: Annotated[int, typer.Option(min=1)] = 2,
    table: Annotated[bool, typer.Option("--table", help="Measure nothing.")] = False,
    figures: Annotated[Path | None, typer.Option(help="Folder of the figures.")] = None,
) -> None:
    """Measure what is missing, and print the tables."""
    torch.set_num_threads(1)
    results = {name: Results(output, name) for name in part or PARTS}
    if not table:
        jobs = {
            "training": lambda: training_jobs(results["training"], num_seeds),
            "gradients": gradient_jobs,
            "hacking": lambda: hacking_jobs(num_hacking_seeds),
        }
        for name, own in results.items():
            for job in jobs[name]():
                own.get(job, measure)
    rows = {name: each.rows for name, each in results.items()}
    print_tables(rows)
    if figures:
        draw_figures(rows, figures)


if __name__ == "__main__":
    typer.run(main)
