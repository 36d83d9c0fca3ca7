"""What MLflow has not received yet, in order, in one JSON-lines file that survives ``kill -9``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from vader_ray.files import atomic_write

FILE_NAME = "undelivered.jsonl"

Event = dict[str, Any]
"""``{"kind": "metrics" | "image" | "file" | "end", …}`` in plain JSON, with the time at which it happened."""


class Outbox:
    """The waiting events of one run; `events` and the file always agree, and no events means no file.

    Raises:
        ValueError: the folder holds waiting events of another run.
    """

    def __init__(self, folder: Path, *, uri: str, run_id: str) -> None:
        self.path = folder / FILE_NAME
        self._header = {"uri": uri, "run_id": run_id}
        header, self.events = read(folder)
        if header and header["run_id"] != run_id:
            raise ValueError(
                f"{self.path} holds results of MLflow run {header['run_id']} that were never delivered; deliver them with "
                f"`vader-ray sync {folder}`, or delete the file, or use another folder"
            )
        if header:
            self._rewrite()

    def store(self, events: list[Event]) -> None:
        """Let exactly these events wait; on return they are on disk."""
        num_kept = len(self.events)
        grows = 0 < num_kept <= len(events) and all(
            new is old for new, old in zip(events, self.events, strict=False)
        )
        added = events[num_kept:]
        self.events = list(events)
        if grows:
            self._append(added)
        else:
            self._rewrite()

    def _append(self, events: list[Event]) -> None:
        with self.path.open("ab") as file:
            _write(file, events)

    def _rewrite(self) -> None:
        if not self.events:
            self.path.unlink(missing_ok=True)
            return
        with atomic_write(self.path) as unfinished, unfinished.open("wb") as file:
            _write(file, [self._header, *self.events])


def read(folder: Path) -> tuple[Event, list[Event]]:
    """The header (``uri`` and ``run_id``; empty when nothing waits) and the events; a last line torn by a kill is left out."""
    path = folder / FILE_NAME
    if not path.exists():
        return {}, []
    complete, _, _torn = path.read_bytes().rpartition(b"\n")
    header, *events = (json.loads(line) for line in complete.splitlines())
    return header, events


def _write(file: BinaryIO, events: list[Event]) -> None:
    file.write("".join(json.dumps(event) + "\n" for event in events).encode())
    file.flush()
    os.fsync(file.fileno())
