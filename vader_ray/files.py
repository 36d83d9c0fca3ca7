"""Write files and folders so that they appear complete or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

UNFINISHED = ".unfinished"
"""Suffix of a file or folder that is still being written; a process that was killed may leave one behind."""


_SCRATCH = "vader_ray_scratch_"
_LOCK = "lock"


@contextmanager
def atomic_write(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path next to `path` to write a file or folder to; rename it to `path` at the end.

    If the block raises, `path` stays as it was and the temporary file is deleted. A folder that exists at
    `path` is replaced as a whole.

    Args:
        durable: flush the file to the disk first, so that it survives a power failure too; for a file, not a
            folder.
    """
    unfinished = path.with_name(path.name + UNFINISHED)
    _delete(unfinished)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield unfinished
        if durable:
            _flush(unfinished)
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(unfinished, path)
        if durable:
            _flush(path.parent)
    except BaseException:
        _delete(unfinished)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_write(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def give_ordinary_mode(paths: Iterable[Path]) -> None:
    """Give files the permissions of every new file; safetensors makes its own readable by the user alone."""
    for path in paths:
        probe = path.with_name(path.name + UNFINISHED)
        probe.touch()  # the umask can only be read by changing it, for all threads
        path.chmod(stat.S_IMODE(probe.stat().st_mode))
        probe.unlink()


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a temporary folder; it is deleted at the end, or by the user's next one if its process is killed.

    Its process holds a lock of the operating system on a file in it, which ends with the process.
    """
    _sweep_scratch()
    with TemporaryDirectory(prefix=_SCRATCH) as name, (Path(name) / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        files = Path(name) / "files"
        files.mkdir()
        yield files


def _sweep_scratch() -> None:
    """Delete the scratch folders of this user's processes that were killed."""
    for path in Path(gettempdir()).glob(f"{_SCRATCH}*"):
        with suppress(OSError):  # another process deletes it too
            if path.lstat().st_uid == os.getuid() and not path.is_symlink() and _is_abandoned(path):
                shutil.rmtree(path)


def _is_abandoned(scratch: Path) -> bool:
    """Whether no process holds the lock of a scratch folder; one without a lock file is just being made."""
    try:
        with (scratch / _LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (FileNotFoundError, BlockingIOError):
        return False
    return (scratch / "files").exists()


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
