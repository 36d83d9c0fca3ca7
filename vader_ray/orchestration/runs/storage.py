"""Copies of run folders on any file system of pyarrow: S3, Google Cloud Storage, a shared disk.

A run's folder is written and read locally; a `Mirror` transfers the files that differ.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow import fs

from vader_ray.errors import UserError, first_line
from vader_ray.files import UNFINISHED, atomic_write
from vader_ray.outputs import check_output_folder
from vader_ray.paths import expand_user
from vader_ray.uris import has_secret

RUN_FILE = "run.json"
"""File that identifies a folder's run. Without it, or with another one, nothing is deleted there."""
LOCK_FILE = "run.lock"
"""File in a run's folder, and in its copy, while a driver works on the run. It is not copied."""

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
            f"--storage {uri}: {first_line(error)}; "
            "give s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or a shared folder"
        ) from None
    return system, path


def normalised(storage: str | None) -> str | None:
    """Return the storage as a URI or an absolute path.

    Raises:
        UserError: it has a password, or pyarrow has no such file system.
    """
    if storage is None:
        return None
    if has_secret(storage):
        raise UserError(
            f"--storage {storage} has a password or key, which would get into Ray's files; give the storage "
            "without it, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (S3), "
            "GOOGLE_APPLICATION_CREDENTIALS (Google Cloud), or use the machine's own role"
        )
    if not storage.strip() or "\0" in storage:
        raise UserError(
            f"--storage {storage!r}: give s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or a shared folder"
        )
    uri = storage
    if "://" not in storage:
        check_output_folder(folder := expand_user(storage).resolve())
        uri = str(folder)
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


def names_in(uri: str) -> set[str]:
    """Return the names of all files and subfolders of a folder; empty if there is no such folder."""
    system, root = resolve(uri)
    return {info.base_name for info in system.get_file_info(fs.FileSelector(root, allow_not_found=True))}


def delete_from_run(uri: str, name: str) -> None:
    """Empty a subfolder of a run's folder, if it exists; if there is no run, delete nothing."""
    system, root = resolve(uri)
    if system.get_file_info(f"{root}/{RUN_FILE}").type == fs.FileType.File:
        system.delete_dir_contents(f"{root}/{name}", missing_dir_ok=True)


def read_json(system: fs.FileSystem, path: str) -> dict[str, Any] | None:
    """Return the content of a JSON file, None if there is none."""
    if system.get_file_info(path).type != fs.FileType.File:
        return None
    with system.open_input_stream(path) as stream:
        content: dict[str, Any] = json.loads(stream.read())
    return content


def write_file(system: fs.FileSystem, path: str, content: bytes | BinaryIO) -> None:
    """Write a file atomically: object stores do so by themselves, on a disk it is renamed."""
    on_disk = system.type_name == "local"
    if on_disk:
        system.create_dir(os.path.dirname(path), recursive=True)
    written = path + UNFINISHED if on_disk else path
    with system.open_output_stream(written) as stream:
        shutil.copyfileobj(io.BytesIO(content) if isinstance(content, bytes) else content, stream)
    if on_disk:
        system.move(written, path)


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

        Raises:
            UserError: the local folder belongs to another run than the copy, or to none.
        """
        there = self._there()
        if names is None and RUN_FILE in there:
            self._check_one_run()
        wanted = there if names is None else {name: stamp for name, stamp in there.items() if name in names}
        for name, (_, changed_ns) in wanted.items():
            with atomic_write(self._folder / name) as unfinished:
                with (
                    self._system.open_input_stream(f"{self._root}/{name}") as source,
                    unfinished.open("wb") as target,
                ):
                    shutil.copyfileobj(source, target)
                os.utime(unfinished, ns=(changed_ns, changed_ns))
        if names is None and RUN_FILE in there:
            for name in self._local().keys() - there.keys():
                (self._folder / name).unlink()
        if names is None:
            self._here = {name: stamp for name, stamp in self._local().items() if name in there}

    def push(self) -> None:
        """Copy local changes since the last `pull` or `push`, deletions included."""
        now = self._local()
        for name, stamp in sorted(now.items(), key=lambda item: (item[0] != RUN_FILE, item)):
            if self._here.get(name) != stamp:
                self._upload(name)
        if deleted := self._here.keys() - now.keys():
            self._check_one_run()
            for name in deleted:
                self._system.delete_file(f"{self._root}/{name}")
        self._here = now

    def _upload(self, name: str) -> None:
        with (self._folder / name).open("rb") as source:
            write_file(self._system, f"{self._root}/{name}", source)

    def _check_one_run(self) -> None:
        """Refuse to make a folder and its copy equal if they do not belong to the same run."""
        if self._local().keys() <= {"recipe.yaml"}:  # the run did not begin
            return
        ours, theirs = (
            read_json(system, f"{root}/{RUN_FILE}")
            for system, root in ((fs.LocalFileSystem(), self._folder), (self._system, self._root))
        )
        if ours is None or theirs is None or ours.get("mlflow_run_id") != theirs.get("mlflow_run_id"):
            raise UserError(
                f"{self._folder} and {self.uri} do not belong to one run ({RUN_FILE} is missing or differs), "
                "so neither may replace the other; move one of them away, or choose another --run-name"
            )

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
        if name == LOCK_FILE:
            return False
        *folders, _ = parts = Path(name).parts
        return self._skip.isdisjoint(folders) and not any(part.endswith(UNFINISHED) for part in parts)
