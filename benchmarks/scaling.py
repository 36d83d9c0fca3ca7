"""Predict the seconds of a step on 1 to 1024 workers from measured parts; compare with 1 and 2 real workers.

    python benchmarks/scaling.py shapes_hps                          # some minutes on a CPU
    python benchmarks/scaling.py modelscope_hps --bandwidth 25      # on one GPU; between nodes 25 Gbit/s
    python benchmarks/scaling.py shapes_vjepa --replicas 4           # rewards in 4 actors

One process measures, for one video, the seconds of sampling without gradient (prefix), of sampling and
decoding with gradient, forward and backward (grad_steps), and of its reward (reward); the seconds of a step
that do not depend on its videos (fixed); and the deviation between equal steps (spread). From these, for W
workers of n videos each,

    step = slowest of W · n · (prefix + grad_steps + reward) + fixed + all-reduce of the adapter's gradients

where the slowest of W normal variables lies at the quantile (W - 3/8) / (W + 1/4) (Blom: Statistical
Estimates and Transformed Beta-Variables, 1958), and the all-reduce is recursive halving and doubling:
2 · log2(W) messages, 2 · (W - 1) / W of the bytes (Thakur, Rabenseifner, Gropp: Optimization of Collective
Communication Operations in MPICH, 2005). With R replicas of the rewards, they compute while the worker
samples the next video:

    step = max(slowest · n · (prefix + grad_steps), videos · reward / R) + reward + fixed + all-reduce
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import distributed, multiprocessing

from vader_ray.alignment.reward_gradient import score_and_gradient
from vader_ray.config import ExperimentConfig, load
from vader_ray.training.checkpoint import State
from vader_ray.training.distributed import WorkerGroup
from vader_ray.training.experiment import Experiment, build
from vader_ray.training.loop import make_optimizer
from vader_ray.training.step import train_step

WORKERS = [2**power for power in range(11)]


@dataclass(frozen=True, slots=True)
class Parts:
    """Seconds of the parts of a step; the first three are of one video."""

    prefix: float
    grad_steps: float
    reward: float
    fixed: float
    spread: float
    """Standard deviation of a step's seconds, as a share of them."""
    adapter_bytes: int


@dataclass(frozen=True, slots=True)
class Network:
    """What lies between two workers."""

    bytes_per_second: float
    latency_seconds: float

    def all_reduce(self, num_bytes: int, num_workers: int) -> float:
        """Seconds until every worker has the sum."""
        moved = 2 * (num_workers - 1) / num_workers * num_bytes
        return 2 * math.log2(num_workers) * self.latency_seconds + moved / self.bytes_per_second


def slowest_of(num_workers: int) -> float:
    """How many standard deviations above the mean the slowest of so many normal variables is expected."""
    return statistics.NormalDist().inv_cdf((num_workers - 0.375) / (num_workers + 0.25))


def predict(
    parts: Parts, num_workers: int, num_videos: int, all_reduce: float, num_replicas: int | None = None
) -> float:
    """Seconds of a step of so many videos over all workers."""
    slowest = 1 + parts.spread * slowest_of(min(num_workers, num_videos))
    each = math.ceil(num_videos / num_workers)
    if num_replicas is None:
        return slowest * each * (parts.prefix + parts.grad_steps + parts.reward) + parts.fixed + all_reduce
    own, pool = slowest * each * (parts.prefix + parts.grad_steps), num_videos * parts.reward / num_replicas
    return max(own, pool) + parts.reward + parts.fixed + all_reduce


class Timed:
    """A function that adds up its seconds."""

    def __init__(self, function: Callable[..., Any], device: torch.device) -> None:
        self._function, self._device, self.seconds = function, device, 0.0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        started = _now(self._device)
        result = self._function(*arguments, **named)
        self.seconds += _now(self._device) - started
        return result


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _steps(
    config: ExperimentConfig, experiment: Experiment, group: WorkerGroup, num_steps: int, device: torch.device
) -> list[float]:
    """Seconds of each step, after one that does not count."""
    optimizer, state, seconds = make_optimizer(config, experiment), State(), list[float]()
    for _ in range(num_steps + 1):
        if group.world_size > 1:
            distributed.barrier()
        started = _now(device)
        train_step(config, experiment, optimizer, group, state, 0.0)
        seconds.append(_now(device) - started)
    return seconds[1:]


def _measure(config: ExperimentConfig, num_steps: int, device: torch.device) -> tuple[Parts, list[float]]:
    """The parts of a step, and whole steps, of one worker."""
    experiment = build(config, device)
    whole = _steps(config, experiment, WorkerGroup(), num_steps, device)
    model: Any = experiment.model
    model.sample_prefix = prefix = Timed(model.sample_prefix, device)
    timed = _steps(config, experiment, WorkerGroup(), 1, device)
    sampling, videos = config.sampling, config.videos_per_step
    frames = torch.rand(1, sampling.num_frames, 3, sampling.height, sampling.width, device=device)
    score = Timed(score_and_gradient, device)
    for term in experiment.terms:
        score(
            term.reward, frames, config.prompts.train[:1], config.runtime.decode_chunk_size
        )  # the first one does not count
    score.seconds = 0.0
    for term in experiment.terms:
        score(term.reward, frames, config.prompts.train[:1], config.runtime.decode_chunk_size)
    update = Timed(make_optimizer(config, experiment).update, device)
    update()
    step, per_video = statistics.median([*whole, *timed]), prefix.seconds / (2 * videos)
    parts = Parts(
        prefix=per_video,
        grad_steps=(step - update.seconds) / videos - per_video - score.seconds,
        reward=score.seconds,
        fixed=update.seconds,
        spread=statistics.stdev(whole) / statistics.fmean(whole),
        adapter_bytes=sum(parameter.numel() * 4 for parameter in experiment.model.adapter_parameters()),
    )
    return parts, whole


def _worker(rank: int, config: ExperimentConfig, num_steps: int, folder: str, adapter_bytes: int) -> None:
    """One of two workers on the CPU; rank 0 writes down its steps and the seconds of an all-reduce."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    device = torch.device("cpu")
    seconds = _steps(config, build(config, device), WorkerGroup(rank, 2), num_steps, device)
    sums = [Timed(distributed.all_reduce, device) for _ in range(6)]
    for one in sums:
        one(torch.ones(adapter_bytes // 4))
    if rank == 0:
        found = {"steps": seconds, "all_reduce": statistics.median(one.seconds for one in sums)}
        (Path(folder) / "found.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


def _two_workers(config: ExperimentConfig, num_steps: int, adapter_bytes: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_worker, (config, num_steps, folder, adapter_bytes), nprocs=2)  # type: ignore[no-untyped-call]
        found: dict[str, Any] = json.loads((Path(folder) / "found.json").read_text())
    return found


def main(
    recipe: Annotated[
        str, typer.Argument(help="A packaged recipe or the path of a YAML file.")
    ] = "shapes_hps",
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    num_steps: Annotated[int, typer.Option(help="Measured steps of each kind.")] = 4,
    bandwidth: Annotated[float, typer.Option(help="Between nodes, Gbit/s.")] = 10.0,
    latency: Annotated[float, typer.Option(help="Of a message between nodes, microseconds.")] = 50.0,
    replicas: Annotated[int | None, typer.Option(help="Rewards in so many actors.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write everything as JSON.")
    ] = None,
) -> None:
    """Measure, predict, compare."""
    config = load(recipe, overrides or [])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parts, one = _measure(config, num_steps, device)
    print(", ".join(f"{name} {value:.4g}" for name, value in asdict(parts).items()))
    report: dict[str, Any] = {
        "recipe": config.name,
        "device": str(device),
        "parts": asdict(parts),
        "one_worker": one,
    }
    videos = config.videos_per_step
    real = {1: (statistics.median(one), predict(parts, 1, videos, 0.0))}
    if device.type == "cpu" and videos % 2 == 0:
        report["two_workers"] = two = _two_workers(config, num_steps, parts.adapter_bytes)
        real[2] = (statistics.median(two["steps"]), predict(parts, 2, videos, two["all_reduce"]))
    for workers, (seconds, predicted) in real.items():
        print(
            f"{workers} workers here: {seconds:.3f} s per step, "
            f"predicted {predicted:.3f} s ({predicted / seconds - 1:+.0%})"
        )
    network = Network(bandwidth * 1e9 / 8, latency * 1e-6)
    report["predictions"] = rows = [_row(parts, network, workers, videos, replicas) for workers in WORKERS]
    table = Table(
        "workers",
        "same videos per step",
        "speed-up",
        "same videos per worker",
        "efficiency",
        title=f"{config.name}",
    )
    for row in rows:
        fixed, grown = f"{row['strong_seconds']:.3g} s", f"{row['weak_seconds']:.3g} s"
        table.add_row(str(row["workers"]), fixed, f"{row['speed_up']:.1f}", grown, f"{row['efficiency']:.0%}")
    Console(highlight=False).print(table)
    if output is not None:
        output.write_text(json.dumps(report, indent=1) + "\n")


def _row(parts: Parts, network: Network, workers: int, videos: int, replicas: int | None) -> dict[str, float]:
    """The same step on more workers, and a step that grows with the workers while the replicas stay."""
    alone = predict(parts, 1, videos, 0.0, replicas)
    synchronise = network.all_reduce(parts.adapter_bytes, workers)
    strong = predict(parts, workers, videos, synchronise, replicas)
    weak = predict(parts, workers, videos * workers, synchronise, replicas)
    return {
        "workers": workers,
        "strong_seconds": strong,
        "speed_up": alone / strong,
        "weak_seconds": weak,
        "efficiency": alone / weak,
    }


if __name__ == "__main__":
    typer.run(main)
