"""Memory of one training step with each of the paper's tricks added to the one before.

    python -m benchmarks.memory_table --page docs/results.md

The rows follow the paper, whose numbers are GiB of GPU and host memory of ModelScope: LoRA alone, one random
frame decoded and scored, gradient through the last denoising step only (K = 1), and activation checkpointing.
Two further rows are of this package: one step's graph is computed again in the backward pass, and frames are
decoded and scored one at a time, so that all of them can be scored.

* ``counted``: peak of a training step of `modelscope_hps` at its published size, with weights and optimizer
  state, counted on the meta device (`vader_ray.preflight`).
* ``measured``: what a step of `shapes_hps` adds at its peak, by the tensors that are alive during it.

Both are functions of the settings, the same with every seed, so there is nothing to continue.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer
from matplotlib.ticker import PercentFormatter

from benchmarks.command import Page
from benchmarks.estimates import panels, save, style
from benchmarks.pages import check_page, figures_folder, show
from benchmarks.preflight import GIB, recipe_of
from benchmarks.training_runs import load_experiment, models_digest
from vader_ray.config import ExperimentConfig, load
from vader_ray.preflight.estimate import estimate_step
from vader_ray.preflight.trackers import PeakMemoryTracker
from vader_ray.training.checkpoint import State
from vader_ray.training.distributed import WorkerGroup
from vader_ray.training.loop import make_optimizer
from vader_ray.training.step import train_step

PAPER = {"LoRA": 276.0, "+ one frame": 229.0, "+ K = 1": 69.0, "+ checkpointing": 32.5}
"""Numbers of the paper in GiB."""
MIB = 2**20


def rows_of(recipe: ExperimentConfig) -> dict[str, tuple[str, ...]]:
    """Return the overrides of a recipe for each row."""
    whole = (
        f"sampling.truncation_depth={recipe.sampling.num_inference_steps}",
        "sampling.recompute=false",
        "runtime.activation_checkpointing=none",
        "rewards.0.frames=all",
        f"runtime.decode_chunk_size={recipe.sampling.num_frames}",
        "runtime.micro_batch_size=1",
        "runtime.prefix_batch_size=1",
    )
    one_frame = (*whole, "rewards.0.frames=random:1")
    truncated = (*one_frame, "sampling.truncation_depth=1")
    checkpointed = (*truncated, "runtime.activation_checkpointing=block")
    recomputed = (*checkpointed, "sampling.recompute=nested")
    return {
        "LoRA": whole,
        "+ one frame": one_frame,
        "+ K = 1": truncated,
        "+ checkpointing": checkpointed,
        "+ recomputed step": recomputed,
        "+ all frames, one at a time": (*recomputed, "rewards.0.frames=all", "runtime.decode_chunk_size=1"),
    }


def measured_bytes(config: ExperimentConfig) -> int:
    """Return what a training step adds to weights and optimizer state at its peak, in bytes."""
    experiment = load_experiment(config)
    optimizer, state = make_optimizer(config, experiment), State()
    train_step(config, experiment, optimizer, WorkerGroup(), state, 0.0)  # the optimizer's state
    with PeakMemoryTracker() as meter:
        train_step(config, experiment, optimizer, WorkerGroup(), state, 0.0)
    return meter.peak


def memory_table(folder: Path) -> list[list[str]]:
    """Return the paper's, the counted and the measured memory of each row."""
    table = [["settings, each added to the one before", "paper: ModelScope, GiB of GPU and host",
              "counted: `modelscope_hps`, GiB", "measured: a step of `shapes_hps`, MiB"]]  # fmt: skip
    published, shapes = load("modelscope_hps"), load("shapes_hps")
    for (name, overrides), own in zip(rows_of(published).items(), rows_of(shapes).values(), strict=True):
        found = estimate_step(recipe_of("modelscope_hps", overrides, folder))
        counted = (found.weights_bytes + found.state_bytes + found.step_bytes) / GIB
        measured = measured_bytes(load("shapes_hps", [*own, "runtime.num_threads=1"])) / MIB
        table.append([name, f"{PAPER[name]:g}" if name in PAPER else "", f"{counted:.1f}", f"{measured:.1f}"])
        print(table[-1], flush=True)
    return table


def draw(table: list[list[str]], path: Path) -> Path:
    """Draw the three columns as shares of their first rows; return the file."""
    labels = [name.replace("`", "") for name in table[0][1:]]
    figure, (axes,) = panels(["Memory of a step"], "", "share of the first row", labels)
    for index in range(len(labels)):
        values = [float(row[index + 1]) for row in table[1:] if row[index + 1]]
        axes.plot(range(len(values)), [value / values[0] for value in values], **style(index))
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xticks(range(len(table) - 1), [row[0].replace(", ", ",\n") for row in table[1:]], fontsize=8)
    figure.set_size_inches(8.5, 3.6)
    return save(figure, path)


def main(
    output: Annotated[Path, typer.Option(help="Folder of the figure.")] = Path("runs/memory_table"),
    page: Page = None,
) -> None:
    """Count and measure every row; print the table and draw the figure."""
    check_page(page, "memory_table")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="vader_ray_published_") as folder:
        table = memory_table(Path(folder))
    figure = draw(table, figures_folder(page, "memory_table", output) / "memory.png")
    show("memory_table", [table], [figure], page, f"With the models {models_digest()}.")


if __name__ == "__main__":
    typer.run(main)
