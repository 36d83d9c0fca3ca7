"""Results that wait for MLflow, in order, in one file of JSON lines that survives ``kill -9``."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, BinaryIO

from vader_ray.errors import UserError
from vader_ray.files import atomic_write
from vader_ray.uris import redact

FILE_NAME = "undelivered.jsonl"
"""File in the run's folder; there is none while no results wait."""

Event = dict[str, Any]
"""``{"kind": "metrics" | "image" | "file" | "model" | "tag" | "end", …}`` in plain JSON; metrics and
images with step and time."""


class Outbox:
    """The events of one run that wait; `events` and the file agree, except after a failed write.

    Raises:
        UserError: the folder has events of another run.
    """

    def __init__(self, folder: Path, *, uri: str, run_id: str) -> None:
        self.path = folder / FILE_NAME
        self._header = {"uri": redact(uri), "run_id": run_id}
        self._is_whole = True  # the file agrees with the events; not after a write that failed
        header, self.events = read(folder)
        if header and header["run_id"] != run_id:
            raise UserError(
                f"{self.path} has results of MLflow run {header['run_id']} that were not delivered; deliver "
                f"them with `vader-ray sync {folder}`, delete the file, or use another folder"
            )
        if header:
            self._rewrite()

    def store(self, events: list[Event]) -> None:
        """Replace the waiting events; on return they are on disk.

        Raises:
            OSError: the disk does not take them; `events` has them, and the next call writes all.
        """
        num_kept = len(self.events)
        grows = 0 < num_kept <= len(events) and all(
            new is old for new, old in zip(events, self.events, strict=False)
        )
        added = events[num_kept:]
        self.events = list(events)
        if grows and self._is_whole:
            self._append(added)
        else:
            self._rewrite()

    def _append(self, events: list[Event]) -> None:
        self._is_whole = False
        with self.path.open("ab") as file:
            _write(file, events)
        self._is_whole = True

    def _rewrite(self) -> None:
        self._is_whole = False
        if self.events:
            self._write_all()
        else:
            self.path.unlink(missing_ok=True)
        self._is_whole = True

    def _write_all(self) -> None:
        with atomic_write(self.path) as unfinished, unfinished.open("wb") as file:
            _write(file, [self._header, *self.events])


def read(folder: Path) -> tuple[Event, list[Event]]:
    """Return the header and the events, without an incomplete last line.

    The header has ``uri``, without its password, and ``run_id``, and is empty if no file exists.

    Raises:
        UserError: a complete line of the file is damaged.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return {}, []
    complete, _, _incomplete = path.read_bytes().rpartition(b"\n")
    try:
        header, *events = (json.loads(line) for line in complete.splitlines())
        if not {"uri", "run_id"} <= header.keys():
            raise ValueError("its first line does not name a run")
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged ({error}); move it away to go on without the results that wait in it"
        ) from None
    return header, events


def _write(file: BinaryIO, events: list[Event]) -> None:
    file.write("".join(json.dumps(event) + "\n" for event in events).encode())
    file.flush()
    os.fsync(file.fileno())


def now_ms() -> int:
    """Return the time in milliseconds since 1970, as MLflow stores it."""
    return time.time_ns() // 1_000_000


def path_in_folder(folder: Path, path: Path) -> str:
    """Return a path relative to the run's folder, so that it stays valid in a copy of the folder."""
    absolute, root = path.resolve(), folder.resolve()
    return str(absolute.relative_to(root) if absolute.is_relative_to(root) else absolute)
