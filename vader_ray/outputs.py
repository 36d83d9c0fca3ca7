"""Checks of the paths of output files, before the work whose result goes there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from vader_ray.errors import UserError


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
