"""Variance of the gradient per CPU second and per FLOP of the denoiser: several endings against more videos.

    python -m benchmarks.endings                    # shapes_hps, K = 1; some minutes on one core
    python -m benchmarks.endings --depth 4

For each video of a step one process computes the adapter's gradient of each ending by itself. The gradient
with n endings is the mean of a video's first n; its variance is the trace of the covariance over videos
(prompt, noise and endings). "efficiency" is the variance that the same cost would have left if it had been
spent on more videos of one ending, divided by the variance with n endings: above 1, several endings pay. Cost
is the CPU time of sampling, decoder, reward and backward passes, or the FLOPs of the denoiser alone,
recomputation included.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vader_ray.alignment.chunked_backward import backward_by_chunk
from vader_ray.alignment.endings import sample_endings
from vader_ray.alignment.rollout import Rollout
from vader_ray.alignment.truncation import draw_plan
from vader_ray.config import ExperimentConfig, load
from vader_ray.training.experiment import Experiment, batching, build
from vader_ray.training.step import make_rollout
from vader_ray.types import TruncationPlan

NUM_ENDINGS = (1, 2, 4)


@dataclass(frozen=True, slots=True)
class Costs:
    """Cost of one video's parts, in CPU seconds or FLOPs."""

    prefix: float
    first: float
    """The first ending."""
    further: float
    """Each further ending."""

    def of(self, num_endings: int) -> float:
        """Return the cost of a video."""
        return self.prefix + self.first + (num_endings - 1) * self.further


def gradients(
    config: ExperimentConfig, experiment: Experiment, plan: TruncationPlan, num_videos: int
) -> tuple[Tensor, Costs]:
    """Return each ending's gradient, ``videos endings parameters``, and the mean CPU seconds of the parts."""
    videos, prefix, endings = list[Tensor](), list[float](), list[list[float]]()
    for video in range(num_videos):
        rollout = make_rollout(config, experiment, [video])
        started = time.process_time()
        state = experiment.model.sample_prefix(rollout.conditioning, plan, rollout.seeds)
        prefix.append(time.process_time() - started)
        rows, seconds = _gradients_of_endings(experiment, config, state, rollout, plan)
        videos.append(torch.stack(rows))
        endings.append(seconds)
    further = fmean(second for seconds in endings for second in seconds[1:])
    return torch.stack(videos), Costs(fmean(prefix), fmean(seconds[0] for seconds in endings), further)


def _gradients_of_endings(
    experiment: Experiment, config: ExperimentConfig, state: Any, rollout: Rollout, plan: TruncationPlan
) -> tuple[list[Tensor], list[float]]:
    parameters = experiment.model.adapter_parameters()
    rows, seconds, started = list[Tensor](), list[float](), time.process_time()
    for latents in sample_endings(experiment.model, state, rollout, plan):
        backward_by_chunk(
            latents, experiment.model.decoder, experiment.terms, rollout, batching(config.runtime), 1.0
        )
        seconds.append(time.process_time() - started)
        rows.append(
            torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
        )
        for parameter in parameters:
            parameter.grad = None
        started = time.process_time()
    return rows, seconds


def denoiser_flops(config: ExperimentConfig, experiment: Experiment, plan: TruncationPlan) -> Costs:
    """Return the FLOPs of the denoiser's forward and backward passes."""
    rollout, one = make_rollout(config, experiment, [0]), replace(plan, num_endings=1)
    with FlopCounterMode(display=False) as prefix:
        state = experiment.model.sample_prefix(rollout.conditioning, one, rollout.seeds)
    with FlopCounterMode(display=False) as ending:
        experiment.model.sample_with_grad(state, rollout.conditioning, one).sum().backward()
    for parameter in experiment.model.adapter_parameters():
        parameter.grad = None
    flops = float(ending.get_total_flops())
    return Costs(float(prefix.get_total_flops()), flops, flops)


def variance(samples: Tensor, num_endings: int) -> float:
    """Return the trace of the covariance, over videos, of the mean of their first endings."""
    return float(samples[:, :num_endings].mean(dim=1).double().var(dim=0).sum())


def main(
    recipe: str = "shapes_hps",
    depth: Annotated[int, typer.Option(min=1, help="Number of last denoising steps with gradient.")] = 1,
    num_videos: Annotated[int, typer.Option(min=2)] = 16,
    num_seeds: Annotated[int, typer.Option(min=1)] = 5,
) -> None:
    """Print one row per number of endings."""
    torch.set_num_threads(1)
    changes = [f"sampling.num_endings={NUM_ENDINGS[-1]}", f"sampling.truncation_depth={depth}"]
    config = load(recipe, changes)
    experiment = build(config)
    plan = draw_plan(config.sampling, torch.Generator())
    flops, rows, means = (
        denoiser_flops(config, experiment, plan),
        list[tuple[Tensor, Costs]](),
        list[Tensor](),
    )
    for seed in range(num_seeds):
        samples, seconds = gradients(config.model_copy(update={"seed": seed}), experiment, plan, num_videos)
        rows.append((torch.tensor([variance(samples, n) for n in NUM_ENDINGS]), seconds))
        means.append(torch.stack([samples[:, 0].mean(dim=0), samples[:, 1:].mean(dim=(0, 1))]))
    _print(config, depth, rows, flops)
    first, further = torch.stack(means).mean(dim=0)
    cosine = torch.nn.functional.cosine_similarity(first, further, dim=0)
    norm = float(further.norm() / first.norm())
    print(
        f"mean gradient of further endings and of first ones: cosine {cosine:.4f}, ratio of norms {norm:.4f}"
    )


def _print(config: ExperimentConfig, depth: int, rows: list[tuple[Tensor, Costs]], flops: Costs) -> None:
    table = Table(
        "endings",
        "variance",
        "CPU time",
        "efficiency per CPU second (range of seeds)",
        "denoiser FLOPs",
        "efficiency per FLOP",
        title=f"{config.name}, K = {depth}, relative to one ending, {len(rows)} seeds",
    )
    for index, count in enumerate(NUM_ENDINGS):
        left = [float(variances[index] / variances[0]) for variances, _ in rows]
        time_ratio = [seconds.of(count) / seconds.of(1) for _, seconds in rows]
        flop_ratio = flops.of(count) / flops.of(1)
        per_second = [1 / (part * ratio) for part, ratio in zip(left, time_ratio, strict=True)]
        per_flop = fmean(1 / (part * flop_ratio) for part in left)
        table.add_row(
            str(count),
            f"{fmean(left):.3f}",
            f"{fmean(time_ratio):.2f}",
            f"{fmean(per_second):.2f} ({min(per_second):.2f} to {max(per_second):.2f})",
            f"{flop_ratio:.2f}",
            f"{per_flop:.2f}",
        )
    Console(highlight=False, width=130).print(table)


if __name__ == "__main__":
    typer.run(main)
