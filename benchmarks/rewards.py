"""Time rewards in the worker and in Ray actors: milliseconds, memory, bytes moved, and the transport's share.

    python -m benchmarks.rewards                              # embedded networks, two video sizes, CPU
    python -m benchmarks.rewards --frames 16x320x512 --reward brightness --repeats 9
    python -m benchmarks.rewards --reward hps --reward vjepa  # with a GPU and a hub: the published weights

Each time is the median wall time of scores and gradient of one video. Local and remote calls alternate, so
that both see the same load of the machine. ``brightness`` computes next to nothing, so its remote time is the
time of the transport. The share is relative to the shortest possible step of one video at K = 1 with all
frames: the FLOPs of VideoCrafter2 (320×512) and Wan 1.3B (480×832) at 790 TFLOP/s, 0.91 s and 38.4 s. A real
step takes longer, so the real share is smaller.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.engine import machine, memory_meter
from vader_ray import rewards
from vader_ray.alignment.reward_gradient import score_and_gradient
from vader_ray.config import ExperimentConfig, PlacementConfig, RewardConfig, validate
from vader_ray.orchestration.clusters import connection
from vader_ray.orchestration.reward_service import pool
from vader_ray.orchestration.reward_service.transport import spec_of
from vader_ray.shapes import CHECKPOINTS
from vader_ray.types import Frames

FLOOR_SECONDS = {"16x320x512": 0.91, "81x480x832": 38.4}
"""Of a step of one video: VideoCrafter2 and Wan 2.1 1.3B."""
SHAPES = {
    "object_detection": ("detection", {"object": "box"}),
    "clip_score": ("pickscore", {}),
}
"""Rewards whose embedded checkpoint has another name, and the options that they need."""
PLACEMENTS: dict[str, dict[str, Any]] = {
    "unresized": {"resize_frames": False},
    "resized": {},
    "bfloat16": {"transport": "bfloat16"},
}
"""Settings of a placement, by the heading of their column; the last one resizes too."""
CHUNK_SIZE = 4
PROMPTS = ("a red circle moving left",)
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Row:
    """One reward on one video."""

    reward: str
    frames: str
    local_ms: float
    local_peak_mib: float
    """Beyond the weights and the frames."""
    served_ms: dict[str, float]
    """Per placement."""
    moved_mib: dict[str, float]
    """Frames sent and gradient received, per placement."""

    @property
    def overhead_ms(self) -> float:
        """Time that the transport of unresized frames adds."""
        return self.served_ms["unresized"] - self.local_ms

    @property
    def share(self) -> float | None:
        """Of the floor of a step; None for a size without a known floor."""
        floor = FLOOR_SECONDS.get(self.frames)
        return self.overhead_ms / 1000 / floor if floor else None


@dataclass(frozen=True, slots=True)
class Together:
    """Several rewards on one video: one after the other here, and side by side in actors."""

    rewards: tuple[str, ...]
    frames: str
    local_ms: float
    served_ms: float


def of_the_shapes_data_set(name: str) -> RewardConfig | None:
    """The reward with the embedded shapes weights; None where it has none."""
    if not getattr(rewards.resolve(name), "default_weights", ""):
        return RewardConfig(reward=name)
    checkpoint, options = SHAPES.get(name, (name, {}))
    return (
        RewardConfig(reward=name, weights=f"shapes:{checkpoint}", **options)
        if (CHECKPOINTS / checkpoint).is_dir()
        else None
    )


def measure(spec: RewardConfig, size: str, repeats: int, device: torch.device) -> Row:
    """A reward here and in an actor of its own."""
    video = _video(size, device)
    local = rewards.build(spec, device=device)
    score_and_gradient(local, video, PROMPTS, CHUNK_SIZE)  # fills the caches
    with memory_meter(device) as meter:
        score_and_gradient(local, video, PROMPTS, CHUNK_SIZE)
    calls: dict[str, Callable[[], Any]] = {
        "local": lambda: score_and_gradient(local, video, PROMPTS, CHUNK_SIZE)
    }
    contexts = [pool.start_pools(_config([_placed(spec, name)], size)) for name in PLACEMENTS]
    entered = [next(iter(context.__enter__().values())) for context in contexts]
    try:
        for name, reward in zip(PLACEMENTS, entered, strict=True):
            calls[name] = lambda reward=reward: reward.submit_gradient(video, PROMPTS, CHUNK_SIZE).result()  # type: ignore[misc]
        milliseconds = _medians(calls, repeats)
    finally:
        for context in contexts:
            context.__exit__(None, None, None)
    moved = {name: _bytes_moved(local, video, placed) / MIB for name, placed in PLACEMENTS.items()}
    return Row(spec.name, size, milliseconds.pop("local"), meter.peak / MIB, milliseconds, moved)


def together(specs: Sequence[RewardConfig], size: str, repeats: int, device: torch.device) -> Together:
    """All rewards, one after the other here and side by side in actors."""
    video = _video(size, device)
    local = [rewards.build(spec, device=device) for spec in specs]
    with pool.start_pools(_config([_placed(spec, "resized") for spec in specs], size)) as remote:

        def compute_remotely() -> None:
            for future in [each.submit_gradient(video, PROMPTS, CHUNK_SIZE) for each in remote.values()]:
                future.result()

        def compute_all() -> None:
            for reward in local:
                score_and_gradient(reward, video, PROMPTS, CHUNK_SIZE)

        milliseconds = _medians({"local": compute_all, "served": compute_remotely}, repeats)
    return Together(tuple(spec.name for spec in specs), size, milliseconds["local"], milliseconds["served"])


def _medians(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if repeat:  # the first call of all starts things
                taken[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in taken.items()}


def _video(size: str, device: torch.device) -> Frames:
    num_frames, height, width = map(int, size.split("x"))
    return torch.rand(1, num_frames, 3, height, width, generator=torch.Generator().manual_seed(0)).to(device)


def _bytes_moved(reward: Any, video: Frames, placement: dict[str, Any]) -> float:
    """Bytes of the frames that are sent and of the gradient that comes back."""
    config = PlacementConfig(actor="any", **placement)
    spec = spec_of(reward, *video.shape[-2:])
    sent = spec.resized if config.resize_frames else spec.unresized
    num_values = video.shape[0] * video.shape[1] * 3 * sent.num_pixels
    return 2 * num_values * getattr(torch, config.transport).itemsize


def _placed(spec: RewardConfig, name: str) -> dict[str, Any]:
    placement = {"actor": f"{spec.name}-{name}", "num_cpus": 0.5, **PLACEMENTS[name]}
    if torch.cuda.is_available():
        placement["num_gpus"] = 0.1
    return spec.model_dump(exclude={"placement"}, exclude_none=True) | {
        "label": placement["actor"],
        "placement": placement,
    }


def _config(placed: Sequence[dict[str, Any]], size: str) -> ExperimentConfig:
    num_frames, height, width = map(int, size.split("x"))
    return validate(
        {
            "name": "benchmark",
            "num_steps": 1,
            "videos_per_step": 1,
            "model": {"family": "modelscope", "weights": "shapes:text_to_video"},
            "prompts": {"train": list(PROMPTS), "validation": ["a blue star moving up"]},
            "sampling": {"num_frames": num_frames, "height": height, "width": width},
            "rewards": list(placed),
        }
    )


def show(rows: Sequence[Row], several: Sequence[Together]) -> None:
    """Print both tables."""
    table = Table(title="One video, scores and gradient")
    for column in (
        "frames",
        "reward",
        "local ms",
        "peak MiB",
        *(f"{name} ms" for name in PLACEMENTS),
        "MiB",
        "transport ms",
        "share",
    ):
        table.add_column(column, justify="left" if column in ("frames", "reward") else "right")
    for row in rows:
        share = "–" if row.share is None else f"{row.share:.2%}"
        times = [f"{row.served_ms[name]:.0f}" for name in PLACEMENTS]
        table.add_row(
            row.frames, row.reward, f"{row.local_ms:.0f}", f"{row.local_peak_mib:.0f}", *times,
            " / ".join(f"{moved:.1f}" for moved in row.moved_mib.values()), f"{row.overhead_ms:.0f}", share,
        )  # fmt: skip
    console = Console(width=130)
    console.print(table)
    for found in several:
        console.print(
            f"{', '.join(found.rewards)} on {found.frames}: "
            f"one after the other here {found.local_ms:.0f} ms, "
            f"side by side in actors {found.served_ms:.0f} ms "
            f"({found.local_ms / found.served_ms:.2f} times as fast)",
            highlight=False,
        )


def main(
    reward: Annotated[list[str] | None, typer.Option(help="only these; several times")] = None,
    frames: Annotated[list[str] | None, typer.Option(help="FRAMESxHEIGHTxWIDTH; several times")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="timed calls of each")] = 5,
    published: Annotated[
        bool, typer.Option(help="the published weights instead of the embedded shapes")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="JSON file of all numbers")] = None,
) -> None:
    """Compare rewards here with rewards in actors."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    chosen = reward or [name for name in rewards.names() if of_the_shapes_data_set(name)]
    specs = [
        found
        for name in chosen
        if (found := RewardConfig(reward=name) if published else of_the_shapes_data_set(name))
    ]
    sizes = frames or list(FLOOR_SECONDS)
    with connection.connected(_config([_placed(specs[0], name) for name in PLACEMENTS], sizes[0])):
        rows = [measure(spec, size, repeats, device) for size in sizes for spec in specs]
        networks = [spec for spec in specs if getattr(rewards.resolve(spec.reward), "default_weights", "")][
            :2
        ]
        several = [together(networks, size, repeats, device) for size in sizes] if len(networks) == 2 else []
    show(rows, several)
    if output is not None:
        content = {
            "runtime": machine(device),
            "rows": [asdict(row) for row in rows],
            "together": [asdict(t) for t in several],
        }
        output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
