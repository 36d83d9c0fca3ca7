"""Docstrings and comments, the documentation and the command line are written in plain words."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

from tests.helpers.paths import REPOSITORY

BANNED = (
    r"so many", r"so few", r"whoever", r"nobody", r"on paper", r"levers?", r"shel(f|ves)", r"foresee",
    r"tells?", r"told",
    r"sa(y|ys|id)", r"hears?", r"heard", r"rooms", r"judges?", r"graded", r"the world('s)?",
    r"(it|that|which|they) lies?", r"headless",
)  # fmt: skip
"""Metaphors and riddles of earlier versions; conventions are in CONTRIBUTING.md."""
PATTERN = re.compile(rf"\b({'|'.join(BANNED)})\b", re.IGNORECASE)
QUOTED = re.compile(r"``.*?``|`.*?`|\".*?\"", re.DOTALL)
FRAGMENTS = re.compile(r"^(What|Whose|Which(?![^\n]*\?)|Of|Beside|Likewise) ")
"""Beginnings of docstrings that have neither a verb nor a noun of the field."""


def _docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """All strings that are statements: docstrings of modules, classes, functions and attributes."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            yield node.lineno, node.value.value


def _comments(path: Path) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def _sources() -> list[Path]:
    return sorted(
        path for folder in ("vader_ray", "sweeps", "examples") for path in (REPOSITORY / folder).rglob("*.py")
    )


def test_docstrings_and_comments_hold_no_banned_word() -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}:{line}: {match.group()}"
        for path in _sources()
        for line, text in (*_docstrings(path), *_comments(path))
        if (match := PATTERN.search(QUOTED.sub("", text)))
    ]
    assert not found, "\n".join(found)


def test_the_documentation_holds_no_banned_word() -> None:
    pages = [
        REPOSITORY / "README.md",
        REPOSITORY / "CONTRIBUTING.md",
        *sorted((REPOSITORY / "docs").glob("*.md")),
    ]
    found = [
        f"{page.relative_to(REPOSITORY)}: {match.group()} in {paragraph[:80]!r}"
        for page in pages
        for paragraph in re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL).split(
            "\n\n"
        )
        if (match := PATTERN.search(QUOTED.sub("", paragraph)))
    ]
    assert not found, "\n".join(found)


def test_docstrings_begin_with_a_sentence_or_a_noun() -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}:{line}: {text.strip()[:60]}"
        for path in _sources()
        for line, text in _docstrings(path)
        if FRAGMENTS.match(text.strip())
    ]
    assert not found, "\n".join(found)
