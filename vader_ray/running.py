"""Record of the reward or metric that runs, in a file that outlives the process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_SIZE = 400
"""Bytes of the file."""
_open_files: list[int] = []
"""Descriptor of this process's file; empty without one."""


def record_running(path: Path) -> None:
    """Record what this process runs in a file from now on, instead of an earlier one."""
    while _open_files:
        os.close(_open_files.pop())
    _open_files.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600))
    _write("")


@contextmanager
def running(subject: str) -> Iterator[None]:
    """Name what runs in the block, if this process records it."""
    _write(subject)
    try:
        yield
    finally:
        _write("")


def read_running(path: Path) -> str:
    """Return what ran when the process that recorded it ended; empty if nothing did, or without the file."""
    with suppress(FileNotFoundError):
        return path.read_text(encoding="utf-8", errors="replace").strip()
    return ""


def _write(subject: str) -> None:
    for descriptor in _open_files:
        os.pwrite(descriptor, subject.encode()[:_SIZE].ljust(_SIZE), 0)
