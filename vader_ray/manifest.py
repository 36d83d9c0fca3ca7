"""Manifest of a folder: a file with the SHA-256 of other files in it, by which a damaged copy is noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from vader_ray.errors import first_line

MANIFEST = "manifest.json"
"""Name of the file."""


def write_manifest(folder: Path, files: Iterable[Path]) -> None:
    """Write the SHA-256 of files in a folder, by their path in it."""
    digests = {path.relative_to(folder).as_posix(): _digest(path) for path in sorted(files)}
    (folder / MANIFEST).write_text(json.dumps(digests, indent=1), encoding="utf-8")


def write_checksum(file: Path) -> None:
    """Write the SHA-256 of a single file beside it, as ``sha256sum --check FILE.sha256`` reads it."""
    beside = file.with_name(f"{file.name}.sha256")
    beside.write_text(f"{_digest(file)}  {file.name}\n", encoding="utf-8")


def find_damage(folder: Path) -> str | None:
    """Return which file of a folder's manifest is missing or damaged, None if all are unchanged."""
    try:
        expected = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if not isinstance(expected, dict) or not expected:
            raise ValueError("it lists no file")
        for name, digest in sorted(expected.items()):
            if not (folder / name).is_file():
                return f"{name} is missing"
            if _digest(folder / name) != digest:
                return f"{name} is damaged"
    except (OSError, ValueError, RecursionError) as error:
        return f"{MANIFEST} cannot be read ({first_line(error)})"
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
