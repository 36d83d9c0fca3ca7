"""The folder of a run: what is in it, whose it is, and whether it may be continued."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from vader_ray.config import ConfigError, ExperimentConfig, flatten
from vader_ray.config.experiment import MAX_NAME_LENGTH, NAME_PATTERN
from vader_ray.orchestration.runs import run_lock
from vader_ray.orchestration.runs import storage as stored
from vader_ray.orchestration.runs.storage import LOCK_FILE, RUN_FILE, UNFINISHED, Mirror

KEPT_BY_RAY = ("checkpoints", "tune")
"""Folders that Ray itself writes to the storage."""

BEFORE_A_RUN = {"recipe.yaml", "given", LOCK_FILE}
"""Names of what may be in the folder of a run before its `RUN_FILE`."""


@dataclass(frozen=True, slots=True)
class RunDir:
    """``runs/NAME``; every path is absolute, for workers have another working directory."""

    path: Path
    mirror: Mirror | None = None
    """Its copy in the storage, through which machines that share no disk work on one run."""
    home: Path | None = None
    """Where the driver has the folder, when this is a worker's copy of it."""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def run(self) -> Path:
        """Identity of the recipe and of the MLflow run."""
        return self.path / RUN_FILE

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def state(self) -> Path:
        """What the reports of a trial have told so far."""
        return self.path / "state.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def queries(self) -> Path:
        return self.path / "queries"

    @property
    def videos(self) -> Path:
        return self.path / "videos"

    @property
    def before(self) -> Path:
        """Frames of the shown held-out videos before training, for the before/after sheet."""
        return self.videos / "before.npz"

    @property
    def adapter(self) -> Path:
        """The adapter after the last step."""
        return self.path / "adapter"

    @property
    def given(self) -> Path:
        """Of a mix: ``adapter/``, and ``costs.json``, what it has cost."""
        return self.path / "given"

    @property
    def best_adapter(self) -> Path:
        """The adapter of the best evaluation."""
        return self.path / "best_adapter"

    @property
    def before_after(self) -> Path:
        return self.path / "before_after.png"

    @property
    def gallery(self) -> Path:
        return self.path / "gallery.html"

    @property
    def ray_log(self) -> Path:
        """What Ray and the workers wrote while the terminal stayed quiet."""
        return self.path / "ray.log"

    @property
    def storage(self) -> str | None:
        """URI of the folder's copy."""
        return self.mirror.uri if self.mirror is not None else None

    def pull(self) -> None:
        """Fetch what others have changed in the storage; without one, nothing."""
        if self.mirror is not None:
            self.mirror.pull()

    def push(self) -> None:
        """Bring what has changed here into the storage; without one, nothing."""
        if self.mirror is not None:
            self.mirror.push()

    def shown(self, path: Path) -> str:
        """A path inside as it is for the driver."""
        return str((self.home or self.path) / path.relative_to(self.path))

    def read_run(self) -> dict[str, Any]:
        """What `open_run_dir` and the driver wrote down, empty for a new run."""
        return json.loads(self.run.read_text(encoding="utf-8")) if self.run.exists() else {}

    def is_complete(self, num_steps: int) -> bool:
        """Whether a run has ended here after so many steps, or because the guard stopped it."""
        if not self.summary.exists():
            return False
        summary = json.loads(self.summary.read_text(encoding="utf-8"))
        done = summary["status"] == "completed" and summary["steps"] >= num_steps
        return bool(done or summary.get("reason"))


@contextmanager
def claim_run_dir(
    config: ExperimentConfig, root: Path, run_name: str | None, *, resume: bool, storage: str | None = None
) -> Iterator[RunDir]:
    """The folder of a new run, or of one that the same recipe began, for this driver alone while the block runs.

    Without a name, a new run is called by its recipe and the time, and ``resume`` finds the latest run of the recipe.

    Raises:
        ConfigError: the name cannot be a run's, another driver works on the run, or as `open_run_dir`.
    """
    if run_name is not None:
        check_run_name(run_name)
    root, uri = root.expanduser().resolve(), stored.normalised(storage)
    if resume and run_name is None and uri is not None:
        _find_runs(config, root, uri)
    name = run_name or (_latest(config, root) if resume else f"{config.name}-{datetime.now():%Y%m%d-%H%M%S}")
    copy = stored.join(uri, name) if uri is not None else None
    if resume and not ((root / name / RUN_FILE).exists() or (copy and RUN_FILE in stored.names_in(copy))):
        raise ConfigError(f"there is no run {name!r} in {uri or root} to resume; start it without --resume")
    instead = (
        "start a new one without --resume" if resume and run_name is None else "choose another --run-name"
    )
    with run_lock.hold(root / name, copy, instead=instead):
        yield open_run_dir(config, root, name, storage=storage)


def check_run_name(name: str) -> None:
    """Refuse a name of a run that is not one folder's plain name.

    Raises:
        ConfigError: the name has other characters, or is too long.
    """
    if len(name) > MAX_NAME_LENGTH or not re.fullmatch(NAME_PATTERN, name):
        raise ConfigError(
            f"--run-name {name!r} cannot name a run; begin with a letter or a digit, go on with letters, digits, "
            f"'.', '_' and '-', at most {MAX_NAME_LENGTH} characters"
        )


def open_run_dir(config: ExperimentConfig, root: Path, name: str, *, storage: str | None = None) -> RunDir:
    """The folder of a new run, or of one that the same recipe began, here or by its copy in the storage.

    Raises:
        ConfigError: the name belongs to another recipe or storage, or to a folder that holds no run, or the folder cannot
            be written.
    """
    if name in ("", ".", "..") or "/" in name:
        raise ConfigError(f"{name!r} cannot be the name of a folder; change the values that it is made of")
    root, uri = root.expanduser().resolve(), stored.normalised(storage)
    mirror = Mirror(root / name, stored.join(uri, name), skip=KEPT_BY_RAY) if uri is not None else None
    folder = RunDir(root / name, mirror)
    _check_storage(folder, folder.read_run())
    _check_vacant(folder)
    folder.pull()
    known = folder.read_run()
    if known and (different := _differences(known["identity"], config)):
        raise ConfigError(
            f"the run {name!r} was started with other settings ({', '.join(different[:3])}); "
            "choose another --run-name, or repeat its settings"
        )
    _create(folder, config)
    return folder


@contextmanager
def working_copy(place: str, storage: str | None, *, skip: tuple[str, ...] = KEPT_BY_RAY) -> Iterator[RunDir]:
    """The run's folder for a process on any machine: the driver's own at ``place``, or a temporary copy of the storage's.

    Raises:
        ConfigError: the driver's disk is not here and there is no storage.
    """
    home = Path(place)
    if storage is None:
        if not home.is_dir():
            raise ConfigError(
                f"the run folder {home} is not on this machine; "
                "give --storage s3://BUCKET/PREFIX or a folder that all machines share"
            )
        yield RunDir(home)
        return
    with TemporaryDirectory(prefix="vader_ray_run_") as scratch:
        path = Path(scratch) / home.name
        folder = RunDir(path, Mirror(path, storage, skip=skip), home)
        folder.pull()
        yield folder


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a JSON file that appears whole or not at all."""
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def _find_runs(config: ExperimentConfig, root: Path, uri: str) -> None:
    """Fetch from the storage what tells which runs of the recipe there are."""
    for name in stored.subfolders(uri):
        if name.startswith(f"{config.name}-") and not run_lock.is_held(root / name):
            Mirror(root / name, stored.join(uri, name)).pull(("run.json", "summary.json"))


def _check_storage(folder: RunDir, known: dict[str, Any]) -> None:
    """A run stays where its checkpoints are."""
    if known and (theirs := known.get("storage")) != folder.storage:
        raise ConfigError(
            f"the run {folder.name!r} keeps its checkpoints in {theirs or folder.checkpoints}; continue it "
            + (
                "without --storage"
                if theirs is None
                else f"with --storage {theirs.removesuffix('/' + folder.name)}"
            )
        )


def _check_vacant(folder: RunDir) -> None:
    """A run begins in a folder without files of others, for it replaces and deletes files there."""
    for place in filter(None, (str(folder.path), folder.storage)):
        names = stored.names_in(place)
        others = {name for name in names if not name.endswith(UNFINISHED)} - BEFORE_A_RUN
        if others and RUN_FILE not in names:
            raise ConfigError(
                f"{place} has files ({', '.join(sorted(others)[:3])}) but no {RUN_FILE}, so it is no run's folder; "
                "choose another --run-name"
            )


def _create(folder: RunDir, config: ExperimentConfig) -> None:
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.recipe.write_text(
            yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
            encoding="utf-8",
        )
    except OSError as error:
        raise ConfigError(
            f"the run folder {folder.path} cannot be written ({error.strerror}); give another --runs-dir"
        ) from None


def _latest(config: ExperimentConfig, root: Path) -> str:
    """The most recent unfinished run of the recipe with the same settings."""
    folders = sorted(
        root.glob(f"{config.name}-*/run.json"), key=lambda path: path.stat().st_mtime, reverse=True
    )
    for folder in (RunDir(path.parent) for path in folders):
        if not folder.is_complete(config.num_steps) and not _differences(
            folder.read_run()["identity"], config
        ):
            return folder.name
    raise ConfigError(
        f"there is no unfinished run of {config.name!r} with these settings in {root}; start one without --resume"
    )


def _differences(identity: dict[str, Any], config: ExperimentConfig) -> list[str]:
    """Dotted paths of the settings that decide a result and differ."""
    theirs, mine = flatten(identity), flatten(json.loads(json.dumps(config.fingerprint())))
    return sorted(path for path in theirs.keys() | mine.keys() if theirs.get(path) != mine.get(path))
