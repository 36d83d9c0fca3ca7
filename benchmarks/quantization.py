"""How far quantized frozen weights move videos and reward gradient, and whether training still works.

    python -m benchmarks.quantization deviation                     # shapes_wan, a minute
    python -m benchmarks.quantization deviation --recipe shapes_hps
    python -m benchmarks.quantization training --seeds 3            # six runs of shapes_wan

A deviation is relative to the same model, prompts and noise with weights in float32: |a − b| / |b|, for the
videos over all pixels after their mean was taken from both, and for the gradient over all weights of a fresh
adapter. ``bfloat16`` (``model.precision``, without quantization) is there for comparison.
"""

from __future__ import annotations

from statistics import mean, stdev
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from vader_ray.alignment.algorithms.vader import accumulate_gradient
from vader_ray.alignment.decoding import decode_all
from vader_ray.alignment.rollout import Batching, Rollout
from vader_ray.alignment.truncation import draw_plan
from vader_ray.config import ExperimentConfig, load
from vader_ray.models.core.quantization import QuantizedLinear
from vader_ray.training.events import StepEvent
from vader_ray.training.experiment import build
from vader_ray.training.loop import train

KINDS = {
    "float32": [],
    "bfloat16": ["model.precision=bfloat16"],
    "int8": ["model.quantization=int8"],
    "fp8": ["model.quantization=fp8"],
    "nf4": ["model.quantization=nf4"],
}
Recipe = Annotated[str, typer.Option(help="Packaged recipe.")]
app = typer.Typer(add_completion=False, help=__doc__)


@app.command()
def deviation(recipe: Recipe = "shapes_wan", num_videos: int = 8) -> None:
    """Measure videos and gradient of an untrained adapter."""
    table = Table("weights", "quantized layers", "video", "gradient", "cosine of the gradient")
    reference = None
    for kind, overrides in KINDS.items():
        num_layers, video, gradient = _measure(load(recipe, overrides), num_videos)
        reference = reference or (video, gradient)
        cosine = torch.cosine_similarity(gradient, reference[1], dim=0).item()
        errors = _error(video, reference[0]), _error(gradient, reference[1])
        table.add_row(kind, str(num_layers), *(f"{100 * each:.2f} %" for each in errors), f"{cosine:.5f}")
    Console().print(table)


def _measure(config: ExperimentConfig, num_videos: int) -> tuple[int, Tensor, Tensor]:
    experiment = build(config)
    model, names = experiment.model, list(experiment.rows)[:num_videos]
    every_frame = [[range(config.sampling.num_frames)] * num_videos for _ in experiment.terms]
    rows = [experiment.rows[name] for name in names]
    rollout = Rollout(names, experiment.conditioning[rows], range(num_videos), every_frame)
    plan = draw_plan(config.sampling, torch.Generator().manual_seed(0))
    accumulate_gradient(model, experiment.terms, rollout, plan, Batching(chunk=4), scale=1 / num_videos)
    gradient = torch.cat(
        [each.grad.flatten() for each in model.adapter_parameters() if each.grad is not None]
    )
    with torch.no_grad():
        video = decode_all(model.sample(rollout.conditioning, rollout.seeds), model.decoder)
    layers = [layer for layer in model.modules() for layer in layer.modules()]
    return sum(isinstance(layer, QuantizedLinear) for layer in layers), video - video.mean(), gradient


def _error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@app.command()
def training(recipe: Recipe = "shapes_wan", kind: str = "int8", seeds: int = 3) -> None:
    """Train with and without quantization; print the held-out rewards of every evaluation."""
    for name in ("float32", kind):
        curves = [
            _curves(load(recipe, [*KINDS[name], f"seed={seed}", "prompts.test=null"]))
            for seed in range(seeds)
        ]
        for metric in sorted(curves[0][0][1]):
            for index, (step, _) in enumerate(curves[0]):
                values = [curve[index][1][metric] for curve in curves]
                spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
                each = ", ".join(f"{value:.3f}" for value in values)
                print(
                    f"{name}  {metric}  step {step}: {mean(values):.3f}{spread} over the seeds ({each})",
                    flush=True,
                )


def _curves(config: ExperimentConfig) -> list[tuple[int, dict[str, float]]]:
    found = list[tuple[int, dict[str, float]]]()

    def keep(event: StepEvent) -> None:
        rewards = {name: value for name, value in event.metrics.items() if name.startswith("eval/reward/")}
        if rewards:
            found.append((event.step, rewards))

    train(config, on_step=keep)
    return found


if __name__ == "__main__":
    app()
