"""Which machines for which model: the table of docs/performance.md, counted on the meta device.

    python -m benchmarks.machines --output machines.json             # one or two hours on one CPU core
    python -m benchmarks.machines --output machines.json --model ltx # one model; the others' rows are kept

Cells that the file already has are not counted again: delete it after a change of the code.

For published sizes, all frames scored, one video per GPU and step, with the settings of `FROM_THE_START`,
`vader_ray.preflight.machines` chooses the other settings as ``vader-ray check --devices`` does.
Nothing is measured: memory and bytes are counted, seconds are estimated from data sheets. The speed of a
``24GB`` card is that of an rtx4090, of an ``80GB`` one that of an h100.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.preflight import ALL, BLOCK, recipe_of
from vader_ray.config import override
from vader_ray.preflight.devices import GIB
from vader_ray.preflight.machines import Plan, StepCounter, find_plan, machine

MACHINES = ("1x24GB", "1x80GB", "8x24GB", "8x80GB")
MODELS = {
    "wan_1_3b_hps": "Wan 2.1 1.3B, 81 frames of 480×832",
    "wan_14b": "Wan 2.1 14B, 81 frames of 480×832",
    "wan_a14b": "Wan 2.2 A14B, 81 frames of 720×1280",
    "hunyuan_video": "HunyuanVideo, 129 frames of 720×1280",
    "cogvideox_5b": "CogVideoX 5B, 49 frames of 480×720",
    "ltx": "LTX 2B, 161 frames of 512×768",
    "svd": "Stable Video Diffusion, 14 frames of 576×1024",
}
"""Cases of `benchmarks.preflight` and their names in the table."""
FROM_THE_START = (
    ALL,
    *BLOCK,
    "model.offload_decoder_cache=true",
    "runtime.prefix_batch_size=1",
    "runtime.decode_chunk_size=1",
    "rewards.0.precision=bfloat16",
    "eval_rewards.0.precision=bfloat16",
)
"""Settings that a recipe for the smallest card would have: each spares one count for every model."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A model on a machine: bytes of one GPU, and seconds of a step with one video per GPU."""

    fits: bool
    settings: tuple[str, ...]
    peak_gib: float
    weights_gib: float
    gathered_gib: float
    step_gib: float
    host_gib: float
    computing_seconds: float
    traffic_seconds: float
    received_gb: float
    """Weights from other GPUs in a step."""
    host_gb: float
    """Weights and caches to and from host memory in a step."""


def cell(plan: Plan) -> Cell:
    """Return the numbers of a plan."""
    found = plan.estimate
    return Cell(
        plan.fits,
        tuple(each for each in plan.settings if not each.startswith("runtime.num_workers")),
        peak_gib=found.peak_bytes / GIB,
        weights_gib=found.weights_bytes / GIB,
        gathered_gib=found.gathered_bytes / GIB,
        step_gib=(found.step_bytes - found.gathered_bytes) / GIB,
        host_gib=found.host_bytes / GIB,
        computing_seconds=plan.computing_seconds,
        traffic_seconds=plan.traffic_seconds,
        received_gb=found.traffic.weights / 1e9,
        host_gb=found.traffic.host / 1e9,
    )


def cells(model: str, folder: Path, known: Collection[str]) -> Iterator[tuple[str, Cell]]:
    """Yield one model on each machine that is not known.

    The largest machines, which need the fewest counts, come first.
    """
    config, count = recipe_of(model, FROM_THE_START, folder), StepCounter()
    for name in [each for each in reversed(MACHINES) if each not in known]:
        found = machine(name)
        one_video_each = override(config, [f"videos_per_step={found.num_gpus}"])
        yield name, cell(find_plan(one_video_each, found, count))


def table(rows: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Return the table in Markdown."""
    lines = [f"| model | {' | '.join(name.replace('x', ' × ') for name in MACHINES)} |", "|---" * 5 + "|"]
    for model, title in MODELS.items():
        if found := rows.get(model):
            texts = (_text(found[name]) if name in found else "not counted" for name in MACHINES)
            lines.append(f"| {title} | {' | '.join(texts)} |")
    return "\n".join(lines)


def _text(found: dict[str, Any]) -> str:
    """Return a cell's settings, peak, seconds and traffic."""
    settings = "".join(f", `{setting.split('.', 1)[1]}`" for setting in found["settings"])
    if not found["fits"]:
        return f"no: {found['peak_gib']:.0f} GiB{settings}"
    seconds = f"{found['computing_seconds']:.3g} s"
    if found["traffic_seconds"] >= 1:
        seconds += f" + {found['traffic_seconds']:.3g} s"
    moved = [("received", found["received_gb"]), ("host", found["host_gb"])]
    listed = "".join(f", {name} {num_gb:,.0f} GB" for name, num_gb in moved if num_gb >= 1)
    return f"{found['peak_gib']:.1f} GiB, {seconds}{listed}{settings}"


def main(
    output: Annotated[Path, typer.Option(help="JSON file of all numbers, written after each of them")],
    model: Annotated[list[str] | None, typer.Option(help="only these models")] = None,
) -> None:
    """Count the models and print the table of all that the file has."""
    rows = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {}
    for name in model or MODELS:
        found_before = rows.setdefault(name, {})
        with tempfile.TemporaryDirectory(prefix="vader_ray_published_") as folder:
            for found, numbers in cells(name, Path(folder), found_before):
                rows[name][found] = asdict(numbers)
                print(name, found, numbers, flush=True)
                output.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    typer.run(main)
