"""Writes that a full disk or an unreachable storage refuses: try again for a while, then end the run."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pyarrow import fs

from vader_ray.errors import RunFailed, first_line

T = TypeVar("T")

_PAUSE_SECONDS = 2.0
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}


def retry_writes(write: Callable[[], T], path: object, *, minutes: float, log: Callable[[str], None]) -> T:
    """Call a function that writes below a path until it succeeds; it must be repeatable.

    Args:
        minutes: longest time until the last attempt.
        log: receives one message when the pause begins and one when it ends.

    Raises:
        RunFailed: the last attempt failed; the first error is named.
    """
    end = time.monotonic() + 60 * minutes
    first: OSError | None = None
    while True:
        try:
            result = write()
        except (FileNotFoundError, PermissionError):
            raise  # waiting does not help
        except OSError as error:
            if first is None:
                log(f"{_refusal(path, error)}; training pauses and tries again for {minutes:g} minutes")
            first = first or error
            if time.monotonic() >= end:
                raise write_failed(path, first) from first
            time.sleep(min(_PAUSE_SECONDS, max(0.0, end - time.monotonic())))
        else:
            if first is not None:
                log(f"{path} can be written again; training continues")
            return result


def is_disk_error(error: OSError) -> bool:
    """Return whether an error is that of a full, read-only or faulty disk."""
    return error.errno in _DISK_ERRORS


def write_failed(path: object, error: OSError) -> RunFailed:
    """Return the error that ends a run whose files cannot be written."""
    return RunFailed(
        f"{_refusal(path, error)}; free some space, or make it writable and reachable, and continue with "
        "--resume; checkpoint.retry_minutes sets how long a run waits"
    )


def check_takes(system: fs.FileSystem, root: str, num_bytes: int) -> None:
    """Check that a folder is reachable and, on a disk, has space for a number of bytes.

    Raises:
        OSError: it is not reachable or too small.
    """
    if system.type_name != "local":
        system.get_file_info(fs.FileSelector(root, allow_not_found=True))
        return
    Path(root).mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(root).free < num_bytes:
        raise OSError(errno.ENOSPC, f"No space left on device for {num_bytes} bytes")


def size_of(folder: Path) -> int:
    """Return the number of bytes of all files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _refusal(path: object, error: OSError) -> str:
    reason = os.strerror(error.errno) if error.errno is not None else first_line(error)
    return f"{path} cannot be written ({reason})"
