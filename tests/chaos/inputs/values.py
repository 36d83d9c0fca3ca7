"""Long values of the tables, by the names that stand for them there."""

from __future__ import annotations

LONG_VALUES = {
    "{LONG}": "x" * 300,
    "{MILLION}": "a" * 1_000_000,
    "{DIGITS}": "9" * 5000,
    "{DEEP}": "[" * 5000,
}


def fill(text: str) -> str:
    """Return the text with its long values."""
    for name, value in LONG_VALUES.items():
        text = text.replace(name, value)
    return text


def rows(table: str) -> list[tuple[str, str]]:
    """Return the rows of a table, ``input => expected piece of the answer``."""
    return [
        (given, piece) for given, _, piece in (row.partition(" => ") for row in table.strip().split("\n"))
    ]
