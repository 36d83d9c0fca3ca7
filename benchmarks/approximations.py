"""Work saved by approximations before the first gradient step, and how far they move videos and gradient.

    python -m benchmarks.approximations                          # shapes_hps, a UNet
    python -m benchmarks.approximations --recipe shapes_wan      # a transformer

Every row is compared with the same prompts, noise and fresh adapter without approximation. "FLOPs" are those
of the denoiser in one step, gradient steps and recomputation included; "time" is the CPU time of the steps
before the first gradient step. The video's deviation is |a − b| / |b| after the mean was taken from both;
cosine and ratio of norms compare the gradients of a step of ``--num-videos`` videos. Means over the seeds,
and their range. The last column compares the mean gradients over all seeds, that is, the bias.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from vader_ray.alignment.algorithms.vader import accumulate_gradient
from vader_ray.alignment.decoding import decode_all
from vader_ray.alignment.truncation import draw_plan
from vader_ray.config import ExperimentConfig, load
from vader_ray.preflight.trackers import OpCounter
from vader_ray.training.experiment import Experiment, batching, build
from vader_ray.training.step import make_rollout

INTERVALS = ([0.1, 0.9], [0.2, 0.8], [0, 0.5], [0.5, 1])
GUIDANCE = [f"sampling.guidance_interval={interval}" for interval in INTERVALS]
CACHES = {
    "unet": [f"sampling.prefix_cache=deep_features:{every}" for every in (2, 3, 5)],
    "transformer": [f"sampling.prefix_cache=first_block:{threshold}" for threshold in (0.05, 0.1, 0.2)],
}


@dataclass(frozen=True, slots=True)
class Measured:
    """One step of one seed."""

    video: Tensor
    """Decoded frames less their mean."""
    gradient: Tensor
    seconds: float
    """CPU time of the denoising steps before the first gradient step."""


def approximations(experiment: Experiment) -> list[list[str]]:
    """Return the settings of each row; the first changes nothing."""
    caches = CACHES[experiment.model.denoiser_name]  # type: ignore[attr-defined]
    rows = [[], *([each] for each in (*GUIDANCE, *caches))]
    return rows if "first_block" in caches[0] else [*rows, [GUIDANCE[1], caches[0]]]


def measure(config: ExperimentConfig, experiment: Experiment, num_videos: int) -> Measured:
    """Sample a step's videos and differentiate their objective."""
    model = experiment.model
    plan = draw_plan(config.sampling, torch.Generator().manual_seed(config.seed))
    rollout = make_rollout(config, experiment, range(num_videos))
    started = time.process_time()
    state = model.sample_prefix(rollout.conditioning, plan, rollout.seeds)
    seconds = time.process_time() - started
    with torch.no_grad():
        video = decode_all(model.sample_with_grad(state, rollout.conditioning, plan).detach(), model.decoder)
    accumulate_gradient(
        model, experiment.terms, rollout, plan, batching(config.runtime), scale=1 / num_videos
    )
    return Measured(video - video.mean(), take_gradient(experiment), seconds)


def take_gradient(experiment: Experiment) -> Tensor:
    """Return the adapter's gradient as one vector, and clear it."""
    parameters = experiment.model.adapter_parameters()
    gradient = torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
    for parameter in parameters:
        parameter.grad = None
    return gradient


def denoiser_flops(config: ExperimentConfig, experiment: Experiment) -> int:
    """Return the FLOPs of the denoiser for one video of a step."""
    plan, model = draw_plan(config.sampling, torch.Generator()), experiment.model
    rollout = make_rollout(config, experiment, [0])
    with OpCounter("cpu") as work:
        state = model.sample_prefix(rollout.conditioning, plan, rollout.seeds)
        model.sample_with_grad(state, rollout.conditioning, plan).sum().backward()
    take_gradient(experiment)
    return sum(operation.flops * times for operation, times in work.operations.items())


def main(
    recipe: str = "shapes_hps",
    depth: Annotated[int, typer.Option(min=1, help="Number of last denoising steps with gradient.")] = 1,
    num_videos: Annotated[int, typer.Option(min=1)] = 4,
    num_seeds: Annotated[int, typer.Option(min=1)] = 5,
    setting: Annotated[list[str] | None, typer.Option(help="Only these; several times.")] = None,
) -> None:
    """Print one row per approximation."""
    torch.set_num_threads(1)
    seeds = range(num_seeds)
    table = Table(
        "approximation",
        "FLOPs",
        "time",
        "video",
        "cosine of the gradient",
        "ratio of norms",
        "cosine of the mean",
    )
    reference, flops = list[Measured](), 0
    rows = [[], *([each] for each in setting)] if setting else approximations(build(load(recipe)))
    for overrides in rows:
        chosen = [*overrides, f"sampling.truncation_depth={depth}"]
        configs = [load(recipe, [*chosen, f"seed={seed}"]) for seed in seeds]
        experiment = build(configs[0])
        found = [measure(config, experiment, num_videos) for config in configs]
        work = denoiser_flops(configs[0], experiment)
        reference, flops = reference or found, flops or work
        cells = [" ".join(overrides) or "none", f"{work / flops:.3f}", *_columns(found, reference)]
        print(*cells, sep="  ", flush=True)
        table.add_row(*cells)
    Console(highlight=False, width=180).print(table)
    pairs = [_cosine(one.gradient, other.gradient) for one, other in combinations(reference, 2)]
    if pairs:
        print(f"cosine of the gradients of two seeds without approximation: {_range(pairs)}")


def _columns(found: Sequence[Measured], reference: Sequence[Measured]) -> list[str]:
    pairs = list(zip(found, reference, strict=True))
    seconds = sum(each.seconds for each in found) / sum(each.seconds for each in reference)
    return [
        f"{seconds:.2f}",
        _range([float((each.video - plain.video).norm() / plain.video.norm()) for each, plain in pairs]),
        _range([_cosine(each.gradient, plain.gradient) for each, plain in pairs]),
        _range([float(each.gradient.norm() / plain.gradient.norm()) for each, plain in pairs]),
        f"{_cosine(_mean_gradient(found), _mean_gradient(reference)):.3f}",
    ]


def _mean_gradient(measured: Sequence[Measured]) -> Tensor:
    return torch.stack([each.gradient for each in measured]).mean(dim=0)


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.cosine_similarity(one.double(), other.double(), dim=0))


def _range(values: Sequence[float]) -> str:
    return f"{fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    typer.run(main)
