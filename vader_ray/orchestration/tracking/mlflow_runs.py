"""MLflow: the driver opens and ends a run, rank 0's worker fills it; a server that fails never stops training.

What cannot be delivered waits in ``undelivered.jsonl`` of the run's folder and is sent again later, each step exactly
once. What is left at the end is delivered by ``vader-ray sync FOLDER``.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image

from vader_ray import config as settings
from vader_ray.errors import RunFailed
from vader_ray.orchestration.tracking.environment import describe_environment, git_commit, gpu_names
from vader_ray.orchestration.tracking.experiment import find_or_create_experiment
from vader_ray.orchestration.tracking.mlflow_client import (
    MlflowClient,
    MlflowException,
    Param,
    root_cause,
    start_system_metrics,
)
from vader_ray.orchestration.tracking.mlflow_client import quiet_environment as quiet_environment
from vader_ray.orchestration.tracking.outbox import Event, read
from vader_ray.orchestration.tracking.sender import STEP_METRIC, Sender
from vader_ray.orchestration.tracking.server import SQLITE, TrackingError, database_path, unusable
from vader_ray.orchestration.tracking.server import check_server as check_server
from vader_ray.orchestration.tracking.server import tracking_uri as tracking_uri

LONGEST_PARAMETER = 500
CLOSING_SECONDS = 60.0
"""How long the results that wait may take at the start and the end of a process."""

Status = Literal["FINISHED", "FAILED", "KILLED"]


class MlflowRun(NamedTuple):
    """An open MLflow run."""

    uri: str
    experiment_id: str
    run_id: str


# ----------------------------------------------------------------------------------------------------------- the driver


def start_run(
    config: settings.ExperimentConfig,
    run_name: str,
    recipe_yaml: str,
    *,
    parent_run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
    resume_run_id: str | None = None,
) -> MlflowRun:
    """The run to log to: a new one with parameters, tags, recipe and environment, or the earlier one, open again.

    Raises:
        TrackingError: MLflow does not answer, or does not know `resume_run_id`.
    """
    uri = tracking_uri(config.tracking.uri)
    check_server(uri)
    client = MlflowClient(tracking_uri=uri)
    try:
        if resume_run_id is not None:
            return _reopened(client, uri, resume_run_id)
        experiment_id = find_or_create_experiment(client, uri, config.tracking.experiment)
        all_tags = _tags(config, parent_run_id) | dict(tags or {})
        opened = _opened_before(client, experiment_id, parent_run_id, run_name)
        run_id = opened or client.create_run(experiment_id, run_name=run_name, tags=all_tags).info.run_id
        client.log_batch(run_id, params=_params(config))
        client.log_text(run_id, recipe_yaml, "recipe.yaml")
        client.log_text(run_id, describe_environment(), "environment.txt")
    except (MlflowException, OSError) as error:
        raise unusable(uri, error) from None
    return MlflowRun(uri, experiment_id, run_id)


def _opened_before(
    client: MlflowClient, experiment_id: str, parent_run_id: str | None, run_name: str
) -> str | None:
    """The child run that a driver opened who was lost before it could note that down."""
    if parent_run_id is None:
        return None
    asked = f"tags.`mlflow.parentRunId` = '{parent_run_id}' and attributes.run_name = '{run_name}' and status = 'RUNNING'"
    found = client.search_runs([experiment_id], asked)
    return str(found[0].info.run_id) if found else None


def end_run(
    uri: str,
    run_id: str,
    status: Status,
    *,
    folder: Path,
    tags: Mapping[str, str] | None = None,
    files: Sequence[Path] = (),
) -> str | None:
    """Deliver what waits in the run's folder, then tags, files and the status; a line about what MLflow did not take.

    Files of a subfolder of the run's folder become artifacts in a folder of that name.
    """
    delivery = Sender(uri, run_id, folder, tell=_silent)
    delivery.flush(CLOSING_SECONDS)
    for name, value in (tags or {}).items():
        delivery.post({"kind": "tag", "name": name, "value": value})
    _post_files(delivery, folder, files)
    delivery.post({"kind": "end", "status": status, "time_ms": _now_ms()})
    return delivery.left()


def add_files(uri: str, run_id: str, folder: Path, files: Sequence[Path]) -> str | None:
    """Add artifacts to a run that has ended, as `end_run` does; a line about what MLflow did not take."""
    delivery = Sender(uri, run_id, folder, tell=_silent)
    _post_files(delivery, folder, files)
    return delivery.left()


def _post_files(delivery: Sender, folder: Path, files: Sequence[Path]) -> None:
    for path in (file.resolve() for file in files):
        inside = path.parent.name if path.parent != folder.resolve() else None
        delivery.post({"kind": "file", "path": _inside(folder, path), "artifact_folder": inside})


def deliver(folder: Path, uri: str, run_id: str) -> str | None:
    """Deliver what waits in the folder of a run that is over; returns a line about what MLflow did not take."""
    delivery = Sender(uri, run_id, folder, tell=_silent)
    delivery.flush(float("inf"))
    return delivery.left()


def _reopened(client: MlflowClient, uri: str, run_id: str) -> MlflowRun:
    try:
        client.update_run(run_id, status="RUNNING")
    except MlflowException as error:
        raise TrackingError(
            f"MLflow at {uri} cannot continue run {run_id} ({root_cause(error)}); "
            "give the tracking.uri that the run was started with, or start a new run"
        ) from None
    return MlflowRun(uri, client.get_run(run_id).info.experiment_id, run_id)


def _tags(config: settings.ExperimentConfig, parent_run_id: str | None) -> dict[str, str]:
    tags = {
        "recipe": config.name,
        "mlflow.note.content": config.description,
        "mlflow.parentRunId": parent_run_id,
        "mlflow.source.name": "vader_ray",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": git_commit(),
    }
    return {name: value for name, value in tags.items() if value}


def _params(config: settings.ExperimentConfig) -> list[Param]:
    flat = settings.flatten(config.model_dump(mode="json", exclude={"description"}))
    return [
        Param(re.sub(r"[^/\w.\- :]", "_", name)[:250], _param_value(name, value))
        for name, value in flat.items()
    ]


def _param_value(name: str, value: object) -> str:
    if name.startswith("prompts.") and isinstance(value, list):
        return f"{len(value)} prompts, sha256 {_digest(chr(10).join(value))}"
    text = str(value)
    return (
        text
        if len(text) <= LONGEST_PARAMETER
        else f"{text[: LONGEST_PARAMETER - 30]}… sha256 {_digest(text)}"
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _silent(_line: str) -> None:
    return


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


# ----------------------------------------------------------------------------------------------------------- the worker


class Tracker:
    """Logs one run from rank 0's worker. Whatever happens to MLflow, its methods return within some seconds.

    Log a step before its checkpoint is announced: then a run that is killed and resumed has each step exactly once.

    Raises:
        TrackingError: a SQLite database that this machine does not have, or a folder with results of another run.
    """

    def __init__(
        self,
        uri: str,
        run_id: str,
        folder: Path,
        *,
        system_metrics: bool = True,
        tell: Callable[[str], None] = print,
    ) -> None:
        _check_visible(uri)
        self._uri, self._run_id, self._folder, self._system_metrics = uri, run_id, folder, system_metrics
        self._stop_system_metrics: Callable[[], None] | None = None
        try:
            self._delivery = Sender(uri, run_id, folder, tell=tell)
        except ValueError as error:
            raise TrackingError(str(error)) from None
        self._delivery.forget_end()
        self._delivery.flush(CLOSING_SECONDS)
        self._last_step = self._delivery.last_step
        if not self._delivery.problem:
            self._restart_monitor()
        if gpus := gpu_names():
            self.log_tag("gpus", ", ".join(gpus))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log all metrics of a step at once, unless an earlier process of this run already has."""
        assert STEP_METRIC in metrics, (
            f"the metrics of step {step} lack {STEP_METRIC}, by which a resumed run knows its steps"
        )
        if step > self._last_step:
            self._last_step = step
            values = {name: float(value) for name, value in metrics.items()}
            self._post({"kind": "metrics", "step": step, "time_ms": _now_ms(), "metrics": values})

    def log_image(self, key: str, step: int, image: Image.Image) -> None:
        """Log an image that gets a step slider in MLflow; `key` names the slider."""
        path = self._folder / "undelivered" / f"{key.replace('/', '~')}-{step:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        self._post(
            {
                "kind": "image",
                "key": key,
                "step": step,
                "time_ms": _now_ms(),
                "path": _inside(self._folder, path),
            }
        )

    def log_tag(self, name: str, value: str) -> None:
        """Set a tag of the run."""
        self._post({"kind": "tag", "name": name, "value": value})

    def log_file(self, path: Path, artifact_folder: str = "") -> None:
        """Log a file as an artifact; it must stay where it is, for it may be sent later."""
        self._post(
            {"kind": "file", "path": _inside(self._folder, path), "artifact_folder": artifact_folder or None}
        )

    def close(self) -> str | None:
        """Deliver what waits; returns a line about what MLflow did not take, and how to deliver it."""
        self._delivery.flush(CLOSING_SECONDS)
        self._stop_monitor()
        return self._delivery.left()

    def _post(self, event: Event) -> None:
        was_down = bool(self._delivery.problem)
        self._delivery.post(event)
        if was_down and not self._delivery.problem:
            self._restart_monitor()

    def _restart_monitor(self) -> None:
        """MLflow's monitor gives up for good when the server fails, so it starts anew when the server is back."""
        self._stop_monitor()
        if self._system_metrics:
            self._stop_system_metrics = start_system_metrics(self._uri, self._run_id)

    def _stop_monitor(self) -> None:
        if self._stop_system_metrics is not None:
            self._stop_system_metrics()
            self._stop_system_metrics = None


def _inside(folder: Path, path: Path) -> str:
    """A path relative to the run's folder, which may be copied to another machine before the file is delivered."""
    absolute, root = path.resolve(), folder.resolve()
    return str(absolute.relative_to(root) if absolute.is_relative_to(root) else absolute)


def _check_visible(uri: str) -> None:
    if uri.startswith(SQLITE) and not database_path(uri).is_file():
        raise TrackingError(
            f"tracking.uri: {database_path(uri)} is not on this machine, where rank 0's worker runs; "
            "start `mlflow server` beside the database and give tracking.uri=http://HOST:PORT"
        )


def deliver_waiting(folder: Path) -> str:
    """Deliver what waits in a run's folder, to the server and run recorded there, and return a message about it.

    Raises:
        RunFailed: MLflow did not take everything.
    """
    header, events = read(folder)
    if not events:
        return f"nothing waits in {folder}"
    if undelivered := deliver(folder, header["uri"], header["run_id"]):
        raise RunFailed(undelivered)
    return f"{len(events)} results delivered to MLflow run {header['run_id']} at {header['uri']}"
