"""Records of a run that a fault of the disk has damaged: name them, and rebuild them where that is safe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vader_ray import config as settings
from vader_ray.config import ExperimentConfig
from vader_ray.errors import UserError, first_line
from vader_ray.orchestration.tracking import mlflow_runs
from vader_ray.orchestration.tracking.address import MlflowRun
from vader_ray.uris import Uri

if TYPE_CHECKING:
    from vader_ray.orchestration.runs.run_dir import RunDir

_METADATA: dict[str, type | tuple[type, ...]] = {
    "identity": dict,
    "mlflow_run_id": str,
    "tracking_uri": str,
    "experiment_id": str,
    "storage": (str, type(None)),
}
"""Types of the entries of ``run.json``; ``identity`` is required."""


class DamagedFile(UserError):
    """A file of a run that has not the content that was written."""


def read_record(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file.

    Raises:
        DamagedFile: it is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError(f"it has a {type(content).__name__} instead of an object")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise damaged(path, error) from None
    return content


def damaged(path: Path, error: BaseException) -> DamagedFile:
    """Return the error for a file that cannot be read."""
    return DamagedFile(
        f"{path} is damaged ({first_line(error)}); restore it from a copy, or start a run under another name"
    )


def read_run_file(path: Path) -> dict[str, Any]:
    """Return the content of ``run.json``.

    Raises:
        DamagedFile: it is damaged or lacks an entry.
    """
    content = read_record(path)
    wrong = [
        name
        for name, kind in _METADATA.items()
        if (name in content or name == "identity") and not isinstance(content.get(name), kind)
    ]
    if wrong:
        raise damaged(path, TypeError(f"{wrong[0]} is missing or has another type"))
    return content


def repair_run_file(folder: RunDir, config: ExperimentConfig) -> None:
    """Write a damaged ``run.json`` again, from its copy in the storage, the summary, or MLflow.

    It is safe if the folder's recipe has the settings of the given one. An undamaged file stays.

    Raises:
        DamagedFile: there is not enough left to write it.
    """
    try:
        folder.read_metadata()
    except DamagedFile as error:
        problem = error
    else:
        return
    if folder.mirror is not None:
        folder.mirror.pull(("run.json",))
        folder.read_metadata()
    else:
        if not _has_settings_of(folder, config) or (mlflow_run := _find_mlflow_run(folder, config)) is None:
            raise problem
        folder.write_metadata(config, mlflow_run)
    print(f"{folder.metadata} was damaged; it was written again", flush=True)


def _has_settings_of(folder: RunDir, config: ExperimentConfig) -> bool:
    """Whether the folder's recipe decides every step as the given one does."""
    try:
        recorded = settings.load(str(folder.recipe))
    except (UserError, OSError):
        return False
    return bool(recorded.fingerprint() == config.fingerprint())


def _find_mlflow_run(folder: RunDir, config: ExperimentConfig) -> MlflowRun | None:
    """Return the MLflow run of a folder without storage: that of its summary, else the one of its name."""
    try:
        summary = folder.read_summary()
    except DamagedFile:
        summary = None
    if summary is None:
        return mlflow_runs.find_run(config, folder.name) if folder.checkpoints.is_dir() else None
    if summary.storage is not None:
        return None
    return MlflowRun(Uri(summary.tracking_uri), summary.mlflow_experiment_id, summary.mlflow_run_id)
