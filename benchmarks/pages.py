"""Tables and figures of a benchmark in a page of the documentation.

A page has a part for each benchmark, which ``--page`` replaces by what was measured. It is between two
comments, such as ``<!-- benchmarks.few_steps begins -->`` and ``<!-- benchmarks.few_steps ends -->``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import typer

TableRows: TypeAlias = Sequence[Sequence[str]]
"""Rows of cells; the first one is the heading."""


def markdown_table(rows: TableRows) -> str:
    """Return rows as a table in Markdown."""
    header, *body = rows
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *body))


def print_table(rows: TableRows) -> None:
    """Print rows as a table in Markdown."""
    print(markdown_table(rows), end="\n\n")


def figures_folder(page: Path | None, name: str, output: Path) -> Path:
    """Return the folder of a benchmark's figures: beside its page, or in ``output`` if there is no page.

    For docs/results.md it is docs/results/NAME, and docs/NAME for the page docs/NAME.md.
    """
    if page is None:
        return output
    beside = page.with_suffix("")
    return beside if beside.name == name else beside / name


def check_page(page: Path | None, name: str) -> None:
    """Refuse a page without the marked part of a benchmark, before anything is measured.

    Args:
        name: of the benchmark, such as ``few_steps``.

    Raises:
        typer.BadParameter: there is no such page, or it has no such part.
    """
    if page is None:
        return
    if not page.is_file():
        raise typer.BadParameter(f"there is no page {page}; give the path of a page of the documentation")
    text = page.read_text(encoding="utf-8")
    begin, end = _marks(name)
    if not 0 <= text.find(begin) < text.find(end):
        raise typer.BadParameter(
            f"{page} lacks the lines {begin!r} and {end!r}; write both where the part belongs"
        )


def write_part(page: Path, name: str, paragraphs: Iterable[str]) -> None:
    """Replace the marked part of a page; see `check_page`."""
    check_page(page, name)
    text = page.read_text(encoding="utf-8")
    begin, end = _marks(name)
    part = "\n\n".join((begin, *paragraphs, end))
    page.write_text(text.partition(begin)[0] + part + text.partition(end)[2], encoding="utf-8")


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- benchmarks.{name} begins -->", f"<!-- benchmarks.{name} ends -->"


def show(
    name: str,
    tables: Sequence[TableRows],
    figures: Sequence[Path],
    page: Path | None,
    measured: str,
) -> None:
    """Print tables; with a page, write them and links to the figures into its marked part.

    Args:
        name: of the benchmark, such as ``few_steps``.
        figures: files in `figures_folder`.
        measured: a sentence that says what was measured.
    """
    for table in tables:
        print_table(table)
    if page is not None:
        links = [f"![{path.stem}]({path.relative_to(page.parent)})" for path in figures]
        write_part(page, name, (measured, *map(markdown_table, tables), *links))


def what_was_measured(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say how many runs the lines of a result file are, what they took, and with which models."""
    hours = sum(row["cpu_seconds"] for row in rows) / 3600
    seeds = len({row["job"]["seed"] for row in rows})
    models = ", ".join(sorted({row["models"] for row in rows}))
    return (
        f"{len(rows)} runs ({seeds} seed{'s' if seeds > 1 else ''}) took {hours:.1f} CPU hours, "
        f"with the models {models}."
    )
