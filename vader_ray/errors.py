"""The two errors that end a command with a message; any other exception is a bug and has a traceback."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import SequenceMatcher
from pathlib import Path
from tempfile import TemporaryFile

_ALIKE = 0.65
"""Similarity of names above which one may be meant by the other."""
_LONGEST_NAME = 200
"""Longest name for which a known one is suggested."""


class UserError(ValueError):
    """A mistake that the user can correct; the message names the given value, the expected one and a remedy.

    The command ends with exit status 2.
    """


class RunFailed(RuntimeError):
    """A run that ended without its result: the message gives the cause and how to continue.

    The command ends with exit status 1.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"did you mean 'hps'? "`` for a name that is close to a known one, else an empty text."""
    if len(name) > _LONGEST_NAME:
        return ""
    nearest = max(known, key=lambda candidate: _similarity(name, candidate), default="")
    return f"did you mean {nearest!r}? " if _similarity(name, nearest) >= _ALIKE else ""


def _similarity(name: str, other: str) -> float:
    """Similarity from 0 to 1 of two names, without parts such as ``eval/reward/`` that both begin with."""
    starts = [match.end() for match in re.finditer("[/:]", name) if other.startswith(name[: match.end()])]
    start = max(starts, default=0)
    return SequenceMatcher(None, name[start:], other[start:]).ratio()


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def last_line(error: BaseException) -> str:
    """Return the last line of an error's message: of a remote traceback, the exception itself."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def check_output(path: Path, *, suffix: str = "") -> None:
    """Check before long work that a file can be written; its folder need not exist yet.

    Args:
        suffix: end of the file's name that its format needs.

    Raises:
        UserError: the path is a folder, has another suffix, or cannot be written.
    """
    if "\0" in str(path):
        raise UserError(f"{path} has a NUL character; choose another path")
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder; give the path of a file, such as {path / f'output{suffix}'}")
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"{path} is a device or a named pipe; give the path of a file")
    if suffix and path.suffix.lower() != suffix:
        raise UserError(f"{path} does not end in {suffix}, the format that is written; give such a path")
    check_output_folder(path.parent, path)


def check_output_folder(path: Path, output: Path | None = None) -> None:
    """Check before long work that a folder exists and can be written, or that it can be created.

    Args:
        output: path that the message names, by default the folder.

    Raises:
        UserError: it cannot.
    """
    output = output or path
    existing = next(folder for folder in (path, *path.absolute().parents) if os.path.lexists(folder))
    if not os.path.isdir(existing):
        raise UserError(f"{output} cannot be written ({existing} is no folder); choose another path")
    with explain_write_errors(output), TemporaryFile(dir=existing):
        pass


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Turn the failure to write to a path that the user chose into a `UserError` that names the path."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}); choose another path"
        ) from None
