"""Memory of a long run's and of a large sweep's processes, and what waits for MLflow, over time.

    python -m benchmarks.load steps                       # 5,000 steps of a run of the tiny pipeline
    python -m benchmarks.load trials --num-trials 300     # a sweep of trials of one step each

Memory is what a process shares with no other one (USS). Its slope is that of a line fitted to the samples
after the first fifth of the run, when libraries are loaded and caches filled.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import typer
import yaml
from ray import tune
from rich.console import Console
from rich.table import Table

from tests.helpers.recipe import tiny_document
from tests.helpers.tiny_pipeline import write_tiny_pipeline
from vader_ray.config import validate
from vader_ray.orchestration.sweeps.definition import SweepDefinition
from vader_ray.orchestration.sweeps.driver import run_sweep

MIB = 2**20
WARM_UP = 0.2
"""Share of a run whose samples do not count."""
PRINT_EVERY_SECONDS = 30.0
SMALL: dict[str, Any] = {
    "videos_per_step": 1,
    "adapter": {"rank": 1, "target_modules": ["to_q"]},
    "sampling": {
        "num_frames": 1,
        "height": 8,
        "width": 8,
        "num_inference_steps": 1,
        "guidance_scale": 1.0,
        "recompute": False,
    },
    "tracking": {"system_metrics": True},
}
"""Settings that leave little of a step but the program itself."""

app = typer.Typer(add_completion=False)


@dataclass
class Samples:
    """Samples of one process: number of steps or trials done, and MiB."""

    title: str
    done: list[int] = field(default_factory=list)
    mib: list[float] = field(default_factory=list)

    def slope(self, total: int) -> float | None:
        """MiB per step or trial between the warm-up and the last one; None for a process that has few
        samples."""
        both = zip(self.done, self.mib, strict=True)
        later = [(done, mib) for done, mib in both if WARM_UP * total <= done < total]
        if len({done for done, _ in later}) < 3:
            return None
        return float(np.polyfit(*np.array(later, dtype=float).T, 1)[0])


@dataclass
class Watched:
    """What was seen of a command while it ran."""

    processes: dict[int, Samples] = field(default_factory=dict)
    backlog: list[tuple[int, int]] = field(default_factory=list)
    """Steps or trials done, and results that wait for MLflow."""
    seconds: float = 0.0


def watch(
    root: int, is_running: Callable[[], bool], work: Path, count: Callable[[], int], every: float
) -> Watched:
    """Sample the memory of a process and all below it until it ends."""
    found, started, printed_at = Watched(), time.monotonic(), float("-inf")
    while is_running():
        done = count()
        for process, mib in _memory(root):
            samples = found.processes.setdefault(process.pid, Samples(""))
            samples.title = _title(process, root, samples.title)
            samples.done.append(done)
            samples.mib.append(mib)
        found.backlog.append((done, sum(map(_num_lines, work.rglob("undelivered.jsonl")))))
        if time.monotonic() - printed_at >= PRINT_EVERY_SECONDS:
            printed_at = time.monotonic()
            largest = sorted(found.processes.values(), key=lambda each: -each.mib[-1])[:3]
            memory = ", ".join(f"{each.title} {each.mib[-1]:.0f} MiB" for each in largest)
            print(f"{printed_at - started:.0f} s: {done} done, {memory}", flush=True)
        time.sleep(every)
    found.seconds = time.monotonic() - started
    return found


def _memory(root: int) -> Iterator[tuple[psutil.Process, float]]:
    try:
        processes = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in processes:
        try:
            if mib := process.memory_full_info().uss / MIB:  # a process that has ended has none
                yield process, mib
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue


def _title(process: psutil.Process, root: int, known: str) -> str:
    """Name a process; Ray names its own after what they run, and "IDLE" before and afterwards."""
    if process.pid == root:
        return "driver"
    try:
        words = process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return known
    title = Path(words[0]).name[:40] if words else known
    return known if known.startswith("ray::") and title == "ray::IDLE" else title


def _num_lines(path: Path) -> int:
    try:
        return max(0, path.read_bytes().count(b"\n") - 1)  # without the header
    except OSError:
        return 0


def report(found: Watched, total: int, per: int, unit: str) -> None:
    """Print the slope of every process that lived through the run, and the backlog."""
    table = Table("process", "samples", "MiB at 20 %", "MiB at the end", f"MiB per {per:,} {unit}")
    for samples in sorted(found.processes.values(), key=lambda each: -each.mib[-1]):
        slope = samples.slope(total)
        if slope is None:
            continue
        first = next(
            mib for done, mib in zip(samples.done, samples.mib, strict=True) if done >= WARM_UP * total
        )
        numbers = (f"{first:.1f}", f"{samples.mib[-1]:.1f}", f"{per * slope:+.2f}")
        table.add_row(samples.title, str(len(samples.done)), *numbers)
    console = Console(width=110)
    console.print(table)
    most = max((waiting for _, waiting in found.backlog), default=0)
    last = found.backlog[-1][1] if found.backlog else 0
    print(f"results that waited for MLflow: at most {most}, in the last sample {last}")
    print(f"{found.seconds:.0f} s, {found.seconds / total:.3f} s per {unit.removesuffix('s')}", flush=True)


def _environment() -> dict[str, str]:
    """One thread, and no network."""
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def _document(folder: Path, **changes: Any) -> dict[str, Any]:
    pipeline = folder / "pipeline"
    write_tiny_pipeline(pipeline)
    return tiny_document(pipeline, **(SMALL | changes))


@app.command()
def steps(
    num_steps: Annotated[int, typer.Option(min=10)] = 5000,
    every: Annotated[float, typer.Option(help="Seconds between two samples.")] = 4.0,
) -> None:
    """Watch `vader-ray train` with one worker."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        evaluation = {"every": num_steps, "num_videos": 1, "num_shown": 1}
        checkpoint = {"every": max(1, num_steps // 10)}
        recipe = folder / "tiny.yaml"
        document = _document(folder, num_steps=num_steps, evaluation=evaluation, checkpoint=checkpoint)
        recipe.write_text(yaml.safe_dump(document), encoding="utf-8")
        command = [sys.executable, "-m", "vader_ray", "train", str(recipe), "--run-name", "load"]
        process = subprocess.Popen(command, cwd=folder, env=_environment())
        state = folder / "runs" / "load" / "state.json"
        found = watch(process.pid, lambda: process.poll() is None, folder, lambda: _step(state), every)
        report(found, num_steps, 1000, "steps")
        raise typer.Exit(process.returncode)


def _step(state: Path) -> int:
    return int(json.loads(state.read_text(encoding="utf-8"))["step"]) if state.exists() else 0


@app.command()
def trials(
    num_trials: Annotated[int, typer.Option(min=10)] = 300,
    every: Annotated[float, typer.Option(help="Seconds between two samples.")] = 4.0,
) -> None:
    """Watch a sweep whose trials follow one another in one process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        document = _document(
            folder, num_steps=1, evaluation={"every": 1, "num_videos": 1, "num_shown": 1}, tracking={}
        )
        os.environ.update(_environment())
        process = multiprocessing.get_context("spawn").Process(
            target=_sweep, args=(document, num_trials, folder)
        )
        process.start()
        assert process.pid is not None
        found = watch(process.pid, process.is_alive, folder, lambda: _num_summaries(folder), every)
        report(found, num_trials, 100, "trials")
        raise typer.Exit(process.exitcode)


def _num_summaries(folder: Path) -> int:
    return len(list(folder.glob("runs/*/*/summary.json")))


def _sweep(document: dict[str, Any], num_trials: int, folder: Path) -> None:
    """Run the sweep, in a process of its own."""
    os.chdir(folder)
    definition = SweepDefinition(
        name="load",
        question="",
        recipe="",
        default_overrides=(),
        space={"seed": tune.grid_search(list(range(num_trials)))},
        settings=lambda values, _: {"seed": values["seed"]},
    )
    run_sweep(definition, validate(document), max_concurrent=1)


if __name__ == "__main__":
    app()
