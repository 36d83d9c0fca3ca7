"""The command of a benchmark that trains with several seeds: its options, and how it is started."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.pages import check_page

Output = Annotated[Path, typer.Option(help="Folder of the results; a second start continues there.")]
Seeds = Annotated[int, typer.Option("--seeds", min=1, help="Training runs of each kind, with other seeds.")]
TimeLimit = Annotated[
    float | None, typer.Option(help="Minutes after which no further run starts; start again to continue.")
]
Processes = Annotated[int, typer.Option(min=1, help="Runs at once, each with one thread.")]
Short = Annotated[bool, typer.Option("--short", help="Few steps and videos: a test of the command.")]
Table = Annotated[bool, typer.Option("--table", help="Measure nothing; draw what is there.")]
Page = Annotated[
    Path | None, typer.Option(help="Page whose marked part is replaced, with figures beside it.")
]


@dataclass(frozen=True)
class Options:
    """What the user asked for."""

    output: Path
    seeds: int
    deadline: float
    """Value of `time.monotonic` from which on no run is started."""
    processes: int
    short: bool
    page: Path | None


def run_command(name: str, measure: Callable[[Options], None], *, seeds: int = 5) -> None:
    """Run the command of a benchmark, whose help is the docstring of ``measure``.

    Args:
        name: of the benchmark; its results are in ``runs/NAME`` if no folder is named.
        measure: measures what is missing, prints the tables and draws the figures.
        seeds: default number of seeds.
    """

    def command(
        output: Output = Path("runs") / name,
        seeds: Seeds = seeds,
        time_limit: TimeLimit = None,
        processes: Processes = 2,
        short: Short = False,
        table: Table = False,
        page: Page = None,
    ) -> None:
        check_page(page, name)
        deadline = 0.0 if table else deadline_of(time_limit)
        measure(Options(output, seeds, deadline, processes, short, page))

    command.__doc__ = measure.__doc__
    typer.run(command)


def deadline_of(time_limit: float | None) -> float:
    """Return the value of `time.monotonic` at which a limit of minutes is over."""
    return inf if time_limit is None else time.monotonic() + 60 * time_limit
