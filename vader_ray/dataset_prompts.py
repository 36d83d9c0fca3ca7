"""Prompts of data sets of the package ``datasets``: of the Hugging Face hub, or of local folders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

from vader_ray.errors import first_line
from vader_ray.prompt_files import check_cells, check_column

DATASETS_PREFIX = "datasets:"
"""Begin of the address of a data set, ``datasets:OWNER/NAME:SPLIT``."""
EXPECTED = (
    f"give {DATASETS_PREFIX}OWNER/NAME:SPLIT with a data set that this machine can read, or a file of prompts"
)


def read_dataset(address: str, name: str, split: str, column: str) -> tuple[str, ...]:
    """Return one column of a split, which is read row by row and not kept.

    Args:
        address: the data set as the recipe names it, for messages.
        name: a name on the hub, or an absolute local folder.

    Raises:
        ValueError: the package is missing, the data set cannot be read or has no such split or column, or a
            cell is empty or not text.
    """
    try:
        from datasets import load_dataset
    except ModuleNotFoundError:
        raise ValueError(
            f"{address!r} needs the package `datasets`, which is not installed; run `pip install datasets`, "
            "or give a file of prompts"
        ) from None
    with _errors_explained(address):
        rows = load_dataset(name, split=split, streaming=True)
        columns = rows.column_names
    if columns is not None:
        check_column(address, column, columns)
        rows = rows.select_columns([column])  # so that images of other columns are not decoded
    return tuple(check_cells(_cells(iter(rows), address, column), address, column, EXPECTED))


def _cells(rows: Iterator[Any], address: str, column: str) -> Iterator[tuple[str, Any]]:
    for number in count(1):
        with _errors_explained(address):
            row = next(rows, None)
        if row is None:
            return
        check_column(address, column, list(row), f", row {number}")
        yield f"row {number}", row[column]


@contextmanager
def _errors_explained(address: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001  of `datasets`, the network and the libraries that read files
        raise ValueError(f"{address!r} cannot be read ({first_line(error)}); {EXPECTED}") from None
