"""The folder of a run: its files, the run that it belongs to, and whether that run can be continued."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from vader_ray.config import ExperimentConfig, flatten
from vader_ray.config.experiment import MAX_NAME_LENGTH, NAME_PATTERN
from vader_ray.errors import UserError
from vader_ray.files import UNFINISHED, scratch_folder, write_text
from vader_ray.orchestration.runs import repair, run_lock
from vader_ray.orchestration.runs import storage as stored
from vader_ray.orchestration.runs.storage import LOCK_FILE, RUN_FILE, Mirror
from vader_ray.orchestration.runs.summary import RunSummary
from vader_ray.orchestration.tracking.address import MlflowRun
from vader_ray.paths import expand_user
from vader_ray.training.checkpoint import State
from vader_ray.uris import Uri, redact

KEPT_BY_RAY = ("checkpoints", "tune")
"""Subfolders that Ray itself writes to the storage."""

BEFORE_A_RUN = {"recipe.yaml", "soup", LOCK_FILE}
"""Files and subfolders that may exist in a run's folder before its `RUN_FILE`."""


@dataclass(frozen=True, slots=True)
class RunDir:
    """``runs/NAME``. Every path is absolute, since workers have another working directory."""

    path: Path
    mirror: Mirror | None = None
    """Copy of the folder in the storage, through which machines without a common disk work on one run."""
    home: Path | None = None
    """The driver's folder, if this is a worker's temporary copy of it."""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def metadata(self) -> Path:
        """Fingerprint of the recipe, MLflow run and storage."""
        return self.path / RUN_FILE

    @property
    def summary(self) -> Path:
        """The outcome, once the run has ended."""
        return self.path / "summary.json"

    @property
    def error_log(self) -> Path:
        """Traceback of the error of a reward, a metric or a worker that ended the run."""
        return self.path / "error.log"

    @property
    def state(self) -> Path:
        """State of the run after the last step that rank 0 has logged."""
        return self.path / "state.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def queries(self) -> Path:
        """Every reward query, as Parquet."""
        return self.path / "queries"

    @property
    def videos(self) -> Path:
        """mp4 files of the held-out videos, by step."""
        return self.path / "videos"

    @property
    def before(self) -> Path:
        """Frames of the displayed held-out videos before training, for the before/after image."""
        return self.videos / "before.npz"

    @property
    def unrecorded(self) -> Path:
        """Frames of evaluations whose mp4 files and sheets are not written yet, by step."""
        return self.path / "unrecorded"

    @property
    def adapter(self) -> Path:
        """The adapter after the last step."""
        return self.path / "adapter"

    @property
    def best_adapter(self) -> Path:
        """The adapter of the best evaluation."""
        return self.path / "best_adapter"

    @property
    def model_card(self) -> Path:
        """Model card of the best adapter, once the run has ended."""
        return self.path / "model_card.md"

    @property
    def soup(self) -> Path:
        """The adapter soup to evaluate, if the run trains nothing: ``adapter/`` and its ``costs.json``."""
        return self.path / "soup"

    @property
    def before_after(self) -> Path:
        return self.path / "before_after.png"

    @property
    def gallery(self) -> Path:
        return self.path / "gallery.html"

    @property
    def storage(self) -> str | None:
        """URI of the folder's copy."""
        return self.mirror.uri if self.mirror is not None else None

    def pull(self) -> None:
        """Fetch what other machines have changed in the storage; without a storage, do nothing."""
        if self.mirror is not None:
            self.mirror.pull()

    def push(self) -> None:
        """Copy local changes to the storage; without a storage, do nothing."""
        if self.mirror is not None:
            self.mirror.push()

    def at_home(self, path: Path) -> Path:
        """Return a path of this folder as it is on the driver's machine."""
        return (self.home or self.path) / path.relative_to(self.path)

    def write_metadata(self, config: ExperimentConfig, mlflow_run: MlflowRun, **more: Any) -> None:
        """Record the run that the folder belongs to, so that a later session continues it."""
        document = {
            "identity": config.fingerprint(),
            "mlflow_run_id": mlflow_run.run_id,
            "tracking_uri": redact(mlflow_run.uri),
            "experiment_id": mlflow_run.experiment_id,
            "storage": self.storage,
        }
        write_json(self.metadata, document | more)

    def read_metadata(self) -> dict[str, Any]:
        """Return the metadata of `write_metadata`; empty for a new run."""
        return repair.read_run_file(self.metadata) if self.metadata.exists() else {}

    def read_mlflow_run(self, uri: Uri) -> MlflowRun:
        """Return the MLflow run that `write_metadata` recorded; the recorded URI has no password."""
        known = self.read_metadata()
        return MlflowRun(uri, known["experiment_id"], known["mlflow_run_id"])

    def write_state(self, state: State) -> None:
        """Record the state after a step."""
        write_json(self.state, asdict(state))

    def read_state(self) -> State:
        """Return the last recorded state; a fresh one for a new run."""
        if not self.state.exists():
            return State()
        try:
            return State(**repair.read_record(self.state))
        except TypeError as error:
            raise repair.damaged(self.state, error) from None

    def read_summary(self) -> RunSummary | None:
        """Return the outcome, None for a run that has not ended."""
        if not self.summary.exists():
            return None
        try:
            return RunSummary.model_validate(repair.read_record(self.summary))
        except ValidationError as error:
            first = error.errors()[0]
            at = ".".join(str(part) for part in first["loc"])
            raise repair.damaged(self.summary, ValueError(f"{at}: {first['msg']}")) from None

    def is_complete(self, num_steps: int) -> bool:
        """Whether a run has taken this number of steps or was stopped by its guard, or a sweep has ended."""
        summary = self.read_summary()
        if summary is None:
            return bool(self.read_metadata().get("completed"))
        finished = summary.status == "completed" and summary.steps >= num_steps
        return finished or (summary.status == "stopped" and summary.stop_reason is not None)


@contextmanager
def claim_run_dir(
    config: ExperimentConfig, root: Path, run_name: str | None, *, resume: bool, storage: str | None = None
) -> Iterator[RunDir]:
    """Open the folder of a new run, or of a run of the same recipe, and lock it for this driver.

    Without a name, a new run is named after its recipe and the time, and ``resume`` finds the recipe's latest
    run.

    Raises:
        UserError: the name cannot be a run's, another driver works on the run, there is nothing to resume, or
            as in `open_run_dir`.
    """
    if run_name is not None:
        check_run_name(run_name)
    root, uri = expand_user(root).resolve(), stored.normalised(storage)
    if resume and run_name is None and uri is not None:
        _find_runs(config, root, uri)
    name = run_name or (_latest(config, root) if resume else f"{config.name}-{datetime.now():%Y%m%d-%H%M%S}")
    copy = stored.join(uri, name) if uri is not None else None
    if resume and not ((root / name / RUN_FILE).exists() or (copy and RUN_FILE in stored.names_in(copy))):
        raise UserError(f"there is no run {name!r} in {uri or root} to resume; start it without --resume")
    instead = (
        "start a new one without --resume" if resume and run_name is None else "choose another --run-name"
    )
    with run_lock.hold(root / name, copy, instead=instead):
        yield open_run_dir(config, root, name, storage=storage)


def check_run_name(name: str) -> None:
    """Refuse the name of a run that is not the plain name of one folder.

    Raises:
        UserError: the name has other characters, or is too long.
    """
    if len(name) > MAX_NAME_LENGTH or not re.fullmatch(NAME_PATTERN, name):
        raise UserError(
            f"--run-name {name!r} cannot name a run; begin with a letter or a digit, go on with letters, "
            f"digits, '.', '_' and '-', at most {MAX_NAME_LENGTH} characters"
        )


def check_folder_name(name: str) -> None:
    """Refuse the name of a trial that cannot be a folder's.

    Raises:
        UserError: it has a slash or a NUL character, or is too long or empty.
    """
    if name in ("", ".", "..") or set(name) & set("/\0") or len(name.encode()) > MAX_NAME_LENGTH:
        raise UserError(
            f"{name[:MAX_NAME_LENGTH]!r} cannot be the name of a folder; change the values that it is made of"
        )


def open_run_dir(config: ExperimentConfig, root: Path, name: str, *, storage: str | None = None) -> RunDir:
    """Open the folder of a new run, or of a run of the same recipe, here or from its copy in the storage.

    Raises:
        UserError: the name belongs to another recipe or storage, or to a folder without a run, or the folder
            cannot be written.
    """
    check_folder_name(name)
    root, uri = expand_user(root).resolve(), stored.normalised(storage)
    mirror = Mirror(root / name, stored.join(uri, name), skip=KEPT_BY_RAY) if uri is not None else None
    folder = RunDir(root / name, mirror)
    repair.repair_run_file(folder, config)
    _check_storage(folder, folder.read_metadata())
    _check_vacant(folder)
    folder.pull()
    known = folder.read_metadata()
    if known and (different := _differences(known["identity"], config)):
        raise UserError(
            f"the run {name!r} was started with other settings ({', '.join(different[:3])}); "
            f"choose another --run-name, or repeat its settings{_schedule_note(known['identity'], different)}"
        )
    _create(folder, config)
    return folder


@contextmanager
def working_copy(
    folder: str, storage: str | None, *, skip: tuple[str, ...] = KEPT_BY_RAY
) -> Iterator[RunDir]:
    """Yield the run's folder on any machine: the driver's own, or a temporary copy of the storage's.

    Args:
        folder: path on the driver's machine.
        skip: subfolders that are not copied.

    Raises:
        UserError: the folder is not on this machine and there is no storage.
    """
    home = Path(folder)
    if storage is None:
        if not home.is_dir():
            raise UserError(
                f"the run folder {home} is not on this machine; "
                "give --storage s3://BUCKET/PREFIX or a folder that all machines share"
            )
        yield RunDir(home)
        return
    with scratch_folder() as scratch:
        path = scratch / home.name
        copy = RunDir(path, Mirror(path, storage, skip=skip), home)
        copy.pull()
        yield copy


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(document, indent=2) + "\n")


def _find_runs(config: ExperimentConfig, root: Path, uri: str) -> None:
    """Fetch metadata and summaries of the recipe's runs from the storage."""
    for name in stored.subfolders(uri):
        if name.startswith(f"{config.name}-") and not run_lock.is_held(root / name):
            Mirror(root / name, stored.join(uri, name)).pull(("run.json", "summary.json"))


def _check_storage(folder: RunDir, known: dict[str, Any]) -> None:
    """Refuse to continue a run apart from its checkpoints."""
    if known and (recorded := known.get("storage")) != folder.storage:
        raise UserError(
            f"the run {folder.name!r} keeps its checkpoints in {recorded or folder.checkpoints}; continue it "
            + (
                "without --storage"
                if recorded is None
                else f"with --storage {recorded.removesuffix('/' + folder.name)}"
            )
        )


def _check_vacant(folder: RunDir) -> None:
    """Refuse a folder with files that are no run's, since a run replaces and deletes files in its folder."""
    for folder_or_uri in filter(None, (str(folder.path), folder.storage)):
        names = stored.names_in(folder_or_uri)
        others = {name for name in names if not name.endswith(UNFINISHED)} - BEFORE_A_RUN
        if others and RUN_FILE not in names:
            raise UserError(
                f"{folder_or_uri} has files ({', '.join(sorted(others)[:3])}) but no {RUN_FILE}, "
                "so it is no run's folder; choose another --run-name"
            )


def _create(folder: RunDir, config: ExperimentConfig) -> None:
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        if not folder.recipe.exists() or folder.recipe.read_bytes() != text.encode():
            folder.recipe.write_bytes(text.encode())
    except OSError as error:
        raise UserError(
            f"the run folder {folder.path} cannot be written ({error.strerror}); give another --runs-dir"
        ) from None


def _latest(config: ExperimentConfig, root: Path) -> str:
    """Return the name of the most recent unfinished run of the recipe with the same settings."""
    folders = sorted(
        root.glob(f"{config.name}-*/run.json"), key=lambda path: path.stat().st_mtime, reverse=True
    )
    for folder in (RunDir(path.parent) for path in folders):
        try:
            can_go_on = not folder.is_complete(config.num_steps) and not _differences(
                folder.read_metadata()["identity"], config
            )
        except repair.DamagedFile as error:
            print(f"the run {folder.name} is left out: {error}, or name it with --run-name", flush=True)
            continue
        if can_go_on:
            return folder.name
    raise UserError(
        f"there is no unfinished run of {config.name!r} with these settings in {root}; "
        "start one without --resume"
    )


def _schedule_note(identity: dict[str, Any], different: list[str]) -> str:
    """Explain a difference that can come from ``num_steps``."""
    steps = identity.get("optimizer", {}).get("schedule_steps")
    if steps is None or "optimizer.schedule_steps" not in different:
        return ""
    return (
        f"; its learning rate decays until step {steps}: set optimizer.schedule_steps={steps}, with "
        f"num_steps of at most {steps}"
    )


def _differences(identity: dict[str, Any], config: ExperimentConfig) -> list[str]:
    """Return the dotted paths of the settings that affect results and differ."""
    old, new = flatten(identity), flatten(json.loads(json.dumps(config.fingerprint())))
    return sorted(path for path in old.keys() | new.keys() if old.get(path) != new.get(path))
