"""A lock for each run and sweep: one driver at a time writes to its folder and to the copy in the storage.

The lock of the local folder is one of the operating system (flock), which ends with its process. The lock in
the storage is a small file that its driver rewrites every `_REFRESH_SECONDS`; after `STALE_SECONDS` without a
change, the driver counts as ended. If two drivers lock within the same second, reading the file again decides
between them; pyarrow has no conditional write that would exclude this case with certainty.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO
from uuid import uuid4

import psutil

from vader_ray.errors import UserError, first_line
from vader_ray.orchestration.runs.storage import LOCK_FILE, read_json, resolve, write_file

_REFRESH_SECONDS = 10.0
STALE_SECONDS = 60.0
_POLL_SECONDS = 1.0


@contextmanager
def hold(
    folder: Path, uri: str | None, *, instead: str, stale_seconds: float = STALE_SECONDS
) -> Iterator[None]:
    """Hold the lock of a run's folder, and of its copy at ``uri``, while the block runs.

    Args:
        instead: advice for the user when another driver holds it.
        stale_seconds: a lock in the storage without a change for this time is free, unless its driver runs on
            this machine.

    Raises:
        UserError: another driver holds it. Nothing has been written then.
    """
    with ExitStack() as stack:
        if uri is not None:
            stack.enter_context(_hold_copy(folder.name, uri, instead, stale_seconds))
        stack.enter_context(_hold_folder(folder, instead))
        yield


def is_held(folder: Path) -> bool:
    """Whether a driver on this machine holds the lock of the folder."""
    try:
        file = (folder / LOCK_FILE).open("r+", encoding="utf-8")
    except FileNotFoundError:
        return False
    with file:
        return not _try_lock(file)


def _try_lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(file: TextIO, path: Path) -> bool:
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())


@contextmanager
def _hold_folder(folder: Path, instead: str) -> Iterator[None]:
    path = folder / LOCK_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"the run folder {folder} cannot be written ({error.strerror}); give another --runs-dir"
        ) from None
    with file:
        if not _try_lock(file):
            file.seek(0)
            raise _refusal(folder.name, file.read() or "another process", instead)
        if not _is_at(file, path):  # its driver ended, and deleted it, in this very moment
            raise _refusal(folder.name, "a process that is just ending", instead)
        try:
            file.truncate(0)
            file.write(_describe_this_driver())
            file.flush()
            yield
        finally:
            path.unlink()


@contextmanager
def _hold_copy(name: str, uri: str, instead: str, stale_seconds: float) -> Iterator[None]:
    lock = _StorageLock(name, uri, stale_seconds)
    lock.acquire(instead)
    ended = threading.Event()
    thread = threading.Thread(target=lock.refresh_until, args=(ended,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        lock.release()


class _StorageLock:
    """The lock file of a run in its storage.

    Args:
        name: of the run, for messages.
        uri: of the run's folder there.
        stale_seconds: as of `hold`.
    """

    def __init__(self, name: str, uri: str, stale_seconds: float) -> None:
        self._name, self._stale_seconds = name, stale_seconds
        self._system, root = resolve(uri)
        self._path = f"{root}/{LOCK_FILE}"
        self._content: dict[str, Any] = {
            "id": uuid4().hex,
            "driver": _describe_this_driver(),
            "machine": _this_machine(),
            "pid": os.getpid(),
            "started": psutil.Process().create_time(),
            "refreshed": 0,
        }

    def acquire(self, instead: str) -> None:
        """Take the lock; where it exists already, find out first whether its driver still runs."""
        held = self._read()
        runs = held is not None and not _has_ended(held)
        if held is not None and runs and (held["machine"] == _this_machine() or self._is_refreshed(held)):
            raise _refusal(self._name, held["driver"], instead)
        self._write()
        time.sleep(_POLL_SECONDS)
        held = self._read()
        if held is not None and held["id"] != self._content["id"]:
            raise _refusal(self._name, held["driver"], instead)

    def refresh_until(self, ended: threading.Event) -> None:
        """Rewrite the lock file regularly until the event is set, or another driver has taken it."""
        while not ended.wait(_REFRESH_SECONDS):
            try:
                held = self._read()
                if held is not None and held["id"] != self._content["id"]:
                    print(f"the run {self._name!r} was taken over by {held['driver']}; stop one of the two")
                    return
                self._content["refreshed"] += 1
                self._write()
            except OSError as error:
                print(f"the lock of the run {self._name!r} was not refreshed ({error}); trying again")

    def release(self) -> None:
        """Delete the lock file, unless another driver has taken it."""
        try:
            held = self._read()
            if held is not None and held["id"] == self._content["id"]:
                self._system.delete_file(self._path)
        except OSError as error:
            print(
                f"the lock of the run {self._name!r} was not deleted ({first_line(error)}); "
                f"after {self._stale_seconds:g} s it has no effect"
            )

    def _is_refreshed(self, held: dict[str, Any]) -> bool:
        """Whether the lock file changes within the time after which it is stale."""
        print(
            f"the run {self._name!r} was last in use by {held['driver']}; "
            f"waiting up to {self._stale_seconds:g} s to see whether that has ended",
            flush=True,
        )
        until = time.monotonic() + self._stale_seconds
        while time.monotonic() < until:
            time.sleep(_POLL_SECONDS)
            now = self._read()
            if now != held:
                return now is not None
        return False

    def _read(self) -> dict[str, Any] | None:
        return read_json(self._system, self._path)

    def _write(self) -> None:
        write_file(self._system, self._path, json.dumps(self._content).encode())


def _has_ended(held: dict[str, Any]) -> bool:
    """Whether the driver of a lock was a process of this machine that no longer runs."""
    if held["machine"] != _this_machine():
        return False
    try:
        return bool(psutil.Process(held["pid"]).create_time() != held["started"])
    except psutil.NoSuchProcess:
        return True


def _this_machine() -> str:
    """A name under which process ids mean the same: host, time of its start, and container."""
    container = os.readlink("/proc/self/ns/pid") if os.path.exists("/proc/self/ns/pid") else ""
    return f"{socket.gethostname()} {psutil.boot_time():.0f} {container}"


def _describe_this_driver() -> str:
    return f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M:%S}"


def _refusal(name: str, driver: str, instead: str) -> UserError:
    return UserError(f"the run {name!r} is in use by {driver}; wait until it has ended, or {instead}")
