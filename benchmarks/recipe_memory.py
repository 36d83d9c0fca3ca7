"""The smallest GPU that a packaged recipe of published weights fits by count, against what it states.

    python -m benchmarks.recipe_memory --output recipe_memory.json    # one or two minutes per recipe
    python -m benchmarks.recipe_memory --output recipe_memory.json --recipe wan_1_3b_hps

A recipe states it as a command in its comments, ``# vader-ray check NAME --devices 40GB``, with the
settings for several GPUs if it needs them. Nothing is downloaded and nothing is measured: the sizes of the
networks are those of `benchmarks.published`. The command fails if a recipe does not fit the card that it
states, or fits a smaller one.
"""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.preflight import GIB, recipe_of
from vader_ray.config import RECIPES
from vader_ray.preflight.devices import device
from vader_ray.preflight.estimate import estimate_step

CARDS = (24, 40, 48, 80, 141)
"""Memory of the cards that are compared, in GB."""
_STATED = re.compile(
    r"^# vader-ray check (?P<name>\w+) --devices (?P<size>\d+)GB(?P<settings>(?: \S+=\S+)*)$", re.M
)


@dataclass(frozen=True, slots=True)
class Stated:
    """The card that a recipe states."""

    size_gb: int
    settings: tuple[str, ...]
    """Settings for several GPUs."""


@dataclass(frozen=True, slots=True)
class Row:
    """Counts of a recipe, per GPU."""

    recipe: str
    settings: tuple[str, ...]
    stated_gb: int
    smallest_gb: int | None
    """Smallest of `CARDS` that it fits by count; None if it fits none."""
    peak_gib: float
    load_gib: float
    weights_gib: float
    step_gib: float
    evaluation_gib: float
    host_gib: float
    step_seconds: float
    """Estimated from the data sheet of the stated card, without traffic between GPUs."""
    hours: float
    """The same of all steps, without evaluations."""

    def line(self) -> str:
        """Return the recipe's line of the table in docs/performance.md."""
        gpus = next((each.partition("=")[2] for each in self.settings if "num_workers" in each), "")
        card = f"{gpus} × {self.stated_gb} GB" if gpus else f"{self.stated_gb} GB"
        parts = f"{self.peak_gib:.1f} | {self.weights_gib:.1f} | {self.step_gib:.1f}"
        return f"| `{self.recipe}` | {card} | {parts} | {self.step_seconds:,.0f} s | {self.hours:.1f} h |"


def names() -> list[str]:
    """List the packaged recipes of published weights; those of the embedded shapes need no GPU."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml") if not path.stem.startswith("shapes_"))


def stated(name: str) -> Stated:
    """Return what a packaged recipe states.

    Raises:
        ValueError: it states no card, or several.
    """
    found = list(_STATED.finditer((RECIPES / f"{name}.yaml").read_text(encoding="utf-8")))
    if len(found) != 1 or found[0]["name"] != name:
        raise ValueError(f"{name}: give one line `# vader-ray check {name} --devices 40GB`, not {len(found)}")
    return Stated(int(found[0]["size"]), tuple(found[0]["settings"].split()))


def count(name: str, folder: Path) -> Row:
    """Return the counts of a packaged recipe at its published size."""
    said = stated(name)
    config = recipe_of(name, said.settings, folder)
    found = estimate_step(config)
    seconds = device(f"{said.size_gb}GB").seconds(found.operations)
    fitting = [size for size in CARDS if device(f"{size}GB").fits(found.peak_bytes)]
    return Row(
        name,
        said.settings,
        said.size_gb,
        min(fitting, default=None),
        peak_gib=found.peak_bytes / GIB,
        load_gib=found.load_bytes / GIB,
        weights_gib=found.weights_bytes / GIB,
        step_gib=found.step_bytes / GIB,
        evaluation_gib=found.evaluation_bytes / GIB,
        host_gib=found.host_bytes / GIB,
        step_seconds=seconds,
        hours=seconds * config.num_steps / 3600,
    )


def main(
    output: Annotated[Path, typer.Option(help="JSON file of all rows, written after each of them")],
    recipe: Annotated[list[str] | None, typer.Option(help="only these recipes")] = None,
) -> None:
    """Count the recipes and compare them with what they state."""
    rows = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {}
    wrong = list[str]()
    for name in recipe or names():
        with tempfile.TemporaryDirectory(prefix="vader_ray_published_") as folder:
            row = count(name, Path(folder))
        print(row, flush=True)
        rows[name] = asdict(row)
        output.write_text(json.dumps(rows, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if row.smallest_gb != row.stated_gb:
            wrong.append(f"{name} states {row.stated_gb} GB and fits {row.smallest_gb} GB by count")
    print("\n".join(Row(**rows[name]).line() for name in sorted(rows)))
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    typer.run(main)
