"""Copies of run folders on any file system of pyarrow: S3, Google Cloud Storage, or a disk that machines share.

A run's folder is written and read locally; a `Mirror` transfers the files that differ.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from vader_ray.errors import UserError, first_line
from vader_ray.files import UNFINISHED, atomic_write

Stamp = tuple[int, int]
"""Size in bytes and time of the last change in ns; a file with the same stamp is taken as unchanged."""


def resolve(uri: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of a URI or an absolute path, and the path in it.

    Raises:
        UserError: pyarrow has no such file system, or it cannot be reached.
    """
    try:
        system, path = fs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"--storage {uri}: {first_line(error)}; give s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or a shared folder"
        ) from None
    return system, path


def normalised(storage: str | None) -> str | None:
    """Return the storage as a URI, or as an absolute path if it is a folder; refuse file systems that pyarrow lacks."""
    if storage is None:
        return None
    uri = storage if "://" in storage else str(Path(storage).expanduser().resolve())
    resolve(uri)
    return uri.rstrip("/")


def join(uri: str, *names: str) -> str:
    """Return the URI of a path below a URI; options after a question mark stay at the end."""
    base, mark, options = uri.partition("?")
    return "/".join([base.rstrip("/"), *names]) + mark + options


def subfolders(uri: str) -> list[str]:
    """Return the names of the direct subfolders."""
    system, root = resolve(uri)
    found = system.get_file_info(fs.FileSelector(root, allow_not_found=True))
    return sorted(info.base_name for info in found if info.type == fs.FileType.Directory)


def delete(uri: str) -> None:
    """Delete a folder and its contents, if it exists."""
    system, root = resolve(uri)
    system.delete_dir_contents(root, missing_dir_ok=True)


class Mirror:
    """A local folder and its copy at a URI, which only one process changes at a time.

    Args:
        skip: names of folders that are not copied, at any depth.
    """

    def __init__(self, folder: Path, uri: str, *, skip: Collection[str] = ()) -> None:
        self.uri = uri
        self._folder, self._skip = folder, frozenset(skip)
        self._system, self._root = resolve(uri)
        self._here: dict[str, Stamp] = {}
        """Stamps of the local files when they were last equal to the copy."""

    def pull(self, names: Collection[str] | None = None) -> None:
        """Make the local folder equal to its copy; without a copy nothing changes.

        Args:
            names: fetch only these files, and delete no local file.
        """
        there = self._there()
        wanted = there if names is None else {name: stamp for name, stamp in there.items() if name in names}
        for name, (_, changed_ns) in wanted.items():
            with atomic_write(self._folder / name) as unfinished:
                with (
                    self._system.open_input_stream(f"{self._root}/{name}") as source,
                    unfinished.open("wb") as target,
                ):
                    shutil.copyfileobj(source, target)
                os.utime(unfinished, ns=(changed_ns, changed_ns))
        if names is None and there:
            for name in self._local().keys() - there.keys():
                (self._folder / name).unlink()
            self._here = self._local()

    def push(self) -> None:
        """Copy local changes since the last `pull` or `push`, deletions included."""
        now = self._local()
        for name, stamp in sorted(now.items()):
            if self._here.get(name) != stamp:
                self._upload(name)
        for name in self._here.keys() - now.keys():
            self._system.delete_file(f"{self._root}/{name}")
        self._here = now

    def _upload(self, name: str) -> None:
        """Upload a file atomically: object stores do so by themselves, on a disk it is renamed."""
        target = f"{self._root}/{name}"
        on_disk = self._system.type_name == "local"
        if on_disk:
            self._system.create_dir(os.path.dirname(target), recursive=True)
        written = target + UNFINISHED if on_disk else target
        with (self._folder / name).open("rb") as source, self._system.open_output_stream(written) as stream:
            shutil.copyfileobj(source, stream)
        if on_disk:
            self._system.move(written, target)

    def _there(self) -> dict[str, Stamp]:
        selector = fs.FileSelector(self._root, allow_not_found=True, recursive=True)
        files = (info for info in self._system.get_file_info(selector) if info.type == fs.FileType.File)
        found = {os.path.relpath(info.path, self._root): (info.size, info.mtime_ns) for info in files}
        return {name: stamp for name, stamp in found.items() if self._is_copied(name)}

    def _local(self) -> dict[str, Stamp]:
        return {
            name: (status.st_size, status.st_mtime_ns)
            for name, status in self._local_files()
            if self._is_copied(name)
        }

    def _local_files(self) -> Iterator[tuple[str, os.stat_result]]:
        for path in self._folder.rglob("*"):
            if path.is_file():
                yield str(path.relative_to(self._folder)), path.stat()

    def _is_copied(self, name: str) -> bool:
        *folders, _ = parts = Path(name).parts
        return self._skip.isdisjoint(folders) and not any(part.endswith(UNFINISHED) for part in parts)
