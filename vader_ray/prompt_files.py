"""Files of prompts: text, CSV, JSON lines and Parquet. Part of the configuration; imports no framework."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COLUMN = "prompt"
_NOT_TEXT = re.compile("[\0\ud800-\udfff]")
"""NUL characters and halves of UTF-16 pairs: no tokenizer and no file of results takes them."""


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
    if not path.is_file():
        raise ValueError(
            f"cannot read the prompt file {path}, which is no file; {expected}, or a folder of images"
        )
    if path.suffix.lower() not in readers:
        raise ValueError(
            f"{path} is not known to be a file of prompts by its suffix {path.suffix!r}; {expected}"
        )
    try:
        cells = list(readers[path.suffix.lower()](path, column))
    except OSError as error:
        raise ValueError(f"cannot read the prompt file {path} ({type(error).__name__}); {expected}") from None
    if not cells:
        raise ValueError(f"{path} holds no prompt; {expected}")
    return tuple(_check_text(value, f"{path}, {position}", column) for position, value in cells)


def _read_lines(path: Path, _: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        if line.strip():
            yield f"line {number}", line


def _read_csv(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    reader = csv.DictReader(io.StringIO(_read_text(path), newline=""), strict=True)
    try:
        _check_column(path, column, list(reader.fieldnames or ()))
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
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise ValueError(
                f'{path}, line {number} is not a JSON object; write one {{"{column}": "…"}} per line'
            )
        _check_column(path, column, list(row), f", line {number}")
        yield f"line {number}", row[column]


def _read_parquet(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            _check_column(path, column, file.schema_arrow.names)
            values = file.read(columns=[column]).column(0).to_pylist()
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is not a sound Parquet file ({type(error).__name__}); write it again"
        ) from None
    for number, value in enumerate(values, start=1):
        yield f"row {number}", value


def _read_text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text in UTF-8; save it with this encoding") from None
    if "\0" in text:
        raise ValueError(f"{path} holds NUL characters, which no text has; give a file of text in UTF-8")
    return text


def _check_column(path: Path, column: str, columns: list[str], position: str = "") -> None:
    if columns.count(column) != 1:
        found = ", ".join(map(repr, columns)) or "none"
        raise ValueError(
            f"{path}{position} must have exactly one column {column!r} and has {found}; "
            "set prompts.column to the one that holds the prompts"
        )


def _check_text(value: Any, where: str, column: str) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"{where}: the column {column!r} is empty; write a prompt there or delete the row")
    if not isinstance(value, str):
        raise ValueError(
            f"{where}: the column {column!r} holds a value of type {type(value).__name__}; give text"
        )
    if _NOT_TEXT.search(value):
        raise ValueError(f"{where}: a prompt has a NUL character or half of a UTF-16 pair; remove it")
    return value.strip()
