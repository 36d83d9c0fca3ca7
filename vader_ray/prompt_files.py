"""Files of prompts: text, CSV, JSON lines and Parquet. Part of the configuration; imports no framework."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

COLUMN = "prompt"
MAX_BYTES = 256 * 2**20
"""Largest file of prompts, and most characters of all prompts of a compressed one."""
MAX_LINES = 10_000_000
"""Most lines of a file of prompts, blank ones included."""
MAX_PROMPTS = 1_000_000
"""Largest number of prompts of a file."""
MAX_LENGTH = 10_000
"""Most characters of a prompt; no text encoder of the models reads more than 512 tokens."""
_BATCH_ROWS = 64
"""Rows of a Parquet file in memory at once."""
_SURROGATES = re.compile("[\ud800-\udfff]")
"""Halves of UTF-16 pairs: like NUL characters, no tokenizer and no file of results takes them."""


def read_prompt_file(path: Path, column: str = COLUMN) -> tuple[str, ...]:
    """Return the prompts of a file: lines of a ``.txt``, or one column of a ``.csv``, ``.jsonl`` or
    ``.parquet``.

    Prompts are stripped of white space at both ends; blank lines are skipped.

    Raises:
        ValueError: the file is none of these, has no such column, or a cell of it is empty or not text.
    """
    readers = {".txt": _read_lines, ".csv": _read_csv, ".jsonl": _read_json_lines, ".parquet": _read_parquet}
    tables = ", ".join(list(readers)[1:])
    expected = f"give a .txt file with one prompt per line or a {tables} file with a column {column!r}"
    if not os.path.isfile(path):
        raise ValueError(
            f"cannot read the prompt file {path}, which is no file; {expected}, or a folder of images"
        )
    if path.suffix.lower() not in readers:
        raise ValueError(
            f"{path} is not known to be a file of prompts by its suffix {path.suffix!r}; {expected}"
        )
    try:
        if (num_bytes := path.stat().st_size) > MAX_BYTES:
            raise ValueError(f"{path} has {num_bytes} bytes; a file of prompts has at most {MAX_BYTES}")
        return tuple(check_cells(readers[path.suffix.lower()](path, column), path, column, expected))
    except OSError as error:
        raise ValueError(f"cannot read the prompt file {path} ({type(error).__name__}); {expected}") from None


def check_prompts(prompts: Iterable[str]) -> tuple[str, ...]:
    """Return prompts that come from elsewhere than a file.

    Raises:
        ValueError: a prompt is empty, too long, or has characters that are no text.
    """
    checked = tuple(prompts)
    for number, prompt in enumerate(checked, start=1):
        if problem := _problem(prompt):
            raise ValueError(f"prompt {number} {problem}")
    return checked


def check_cells(
    cells: Iterator[tuple[str, Any]], path: Path | str, column: str, expected: str
) -> Iterator[str]:
    """Yield the prompts of a table's cells, which come with their position.

    Args:
        path: name of the table, for messages.
        expected: the remedy if there are none.

    Raises:
        ValueError: there are none, or too many, or one is empty or not text.
    """
    number = num_characters = 0
    for number, (position, value) in enumerate(cells, start=1):
        if number > MAX_PROMPTS:
            raise ValueError(f"{path} has more than {MAX_PROMPTS} prompts, the most that are read")
        prompt = _check_cell(value, f"{path}, {position}", column)
        num_characters += len(prompt)
        if num_characters > MAX_BYTES:
            raise ValueError(
                f"{path} has more than {MAX_BYTES} characters of prompts, the most that are read"
            )
        yield prompt
    if not number:
        raise ValueError(f"{path} holds no prompt; {expected}")


def _read_lines(path: Path, _: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(io.StringIO(_read_text(path), newline=None), start=1):
        if line.strip():
            yield f"line {number}", line


def _read_csv(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    reader = csv.DictReader(io.StringIO(_read_text(path), newline=""), strict=True)
    try:
        check_column(path, column, list(reader.fieldnames or ()))
        for row in reader:
            if None in row:
                raise ValueError(
                    f"{path}, line {reader.line_num} has more cells than the first line has columns; "
                    "put double quotes around a prompt with a comma"
                )
            yield f"line {reader.line_num}", row[column]
    except csv.Error as error:
        raise ValueError(
            f"{path} is not CSV after its line {reader.line_num} ({error}); correct its double quotes"
        ) from None


def _read_json_lines(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(io.StringIO(_read_text(path)), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise ValueError(
                f'{path}, line {number} is not a JSON object; write one {{"{column}": "…"}} per line'
            )
        check_column(path, column, list(row), f", line {number}")
        yield f"line {number}", row[column]


def _read_parquet(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            check_column(path, column, file.schema_arrow.names)
            numbers = count(1)
            for batch in file.iter_batches(_BATCH_ROWS, columns=[column]):
                for value in batch.column(0):
                    yield f"row {next(numbers)}", value.as_py()
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is not a sound Parquet file ({type(error).__name__}); write it again"
        ) from None


def _read_text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text in UTF-8; save it with this encoding") from None
    if "\0" in text:
        raise ValueError(f"{path} holds NUL characters, which no text has; give a file of text in UTF-8")
    if text.count("\n") + text.count("\r") > MAX_LINES:
        raise ValueError(f"{path} has more than {MAX_LINES} lines, the most that are read; delete blank ones")
    return text


def check_column(path: Path | str, column: str, columns: list[str], position: str = "") -> None:
    """Raise a ValueError unless a table has one column of this name."""
    if columns.count(column) != 1:
        found = ", ".join(map(repr, columns)) or "none"
        raise ValueError(
            f"{path}{position} must have exactly one column {column!r} and has {found}; "
            "set prompts.column to the one that holds the prompts"
        )


def _check_cell(value: Any, where: str, column: str) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"{where}: the column {column!r} is empty; write a prompt there or delete the row")
    if not isinstance(value, str):
        raise ValueError(
            f"{where}: the column {column!r} holds a value of type {type(value).__name__}; give text"
        )
    if problem := _problem(value):
        raise ValueError(f"{where}: a prompt {problem}")
    return value.strip()


def _problem(prompt: str) -> str | None:
    """Return the problem of a prompt and its remedy; None for a sound one."""
    if not prompt.strip():
        return "is empty; write a text, or delete it"
    if len(prompt) > MAX_LENGTH:
        return f"has {len(prompt)} characters; shorten it to at most {MAX_LENGTH}"
    return f"has {found}; remove it" if (found := text_problem(prompt)) else None


def text_problem(text: str) -> str | None:
    """Return the name of characters that no text has; None if there are none."""
    sound = "\0" not in text and (text.isascii() or not _SURROGATES.search(text))
    return None if sound else "a NUL character or half of a UTF-16 pair"
