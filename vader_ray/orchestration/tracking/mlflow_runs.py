"""The driver's part of MLflow: open a run, end it, and deliver results that MLflow did not take.

A run's `Tracker` fills it from the worker of rank 0. Results that MLflow does not take wait in
``undelivered.jsonl`` of the run's folder; ``vader-ray sync FOLDER`` delivers them later.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from vader_ray import config as settings
from vader_ray import metrics, rewards
from vader_ray.errors import RunFailed, UserError
from vader_ray.orchestration.tracking.address import UNITS_TAG, MlflowRun
from vader_ray.orchestration.tracking.datasets import digest, prompt_datasets
from vader_ray.orchestration.tracking.environment import describe_environment, git_commit
from vader_ray.orchestration.tracking.experiment import find_or_create_experiment
from vader_ray.orchestration.tracking.mlflow_client import (
    MlflowClient,
    MlflowException,
    Param,
    connect,
    root_cause,
)
from vader_ray.orchestration.tracking.outbox import Event, now_ms, path_in_folder, read
from vader_ray.orchestration.tracking.sender import CLOSING_SECONDS, Sender
from vader_ray.orchestration.tracking.server import check_server, tracking_uri, unusable
from vader_ray.uris import Uri

LONGEST_PARAMETER = 500
"""Characters of a parameter's value in MLflow; longer values are cut and end with a hash."""

Status = Literal["FINISHED", "FAILED", "KILLED"]
"""Status of an ended run, in MLflow's words."""


def start_run(
    config: settings.ExperimentConfig,
    run_name: str,
    recipe_yaml: str,
    *,
    parent_run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
    resume_run_id: str | None = None,
) -> MlflowRun:
    """Open a new run in MLflow, or the run `resume_run_id` again.

    A new run gets parameters, tags, prompts as data sets, the recipe and a description of its environment.
    The tag `UNITS_TAG` has the unit of each reward and metric, for pages on machines without their code.

    Args:
        tags: further tags.

    Raises:
        UserError: MLflow cannot be used, or has no run `resume_run_id`.
    """
    uri = tracking_uri(config.tracking.uri)
    check_server(uri)
    client = connect(uri)
    try:
        if resume_run_id is not None:
            return _reopen(client, uri, resume_run_id)
        experiment_id = find_or_create_experiment(client, uri, config.tracking.experiment)
        all_tags = _tags(config, parent_run_id) | {
            name: value for name, value in (tags or {}).items() if value
        }
        child_run_id = _find_child(client, experiment_id, parent_run_id, run_name)
        run_id = (
            child_run_id or client.create_run(experiment_id, run_name=run_name, tags=all_tags).info.run_id
        )
        client.log_batch(run_id, params=_params(config))
        client.log_inputs(run_id, prompt_datasets(config, run_id))
        client.log_text(run_id, recipe_yaml, "recipe.yaml")
        client.log_text(run_id, describe_environment(), "environment.txt")
    except (MlflowException, OSError) as error:
        raise unusable(uri, error) from None
    return MlflowRun(uri, experiment_id, run_id)


def find_run(config: settings.ExperimentConfig, run_name: str) -> MlflowRun | None:
    """Return the only run of this name in the recipe's experiment; None if there is none or more than one.

    Raises:
        UserError: MLflow cannot be used.
    """
    uri = tracking_uri(config.tracking.uri)
    check_server(uri)
    client = connect(uri)
    try:
        experiment = client.get_experiment_by_name(config.tracking.experiment)
        if experiment is None:
            return None
        found = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{run_name}'")
    except (MlflowException, OSError) as error:
        raise unusable(uri, error) from None
    return MlflowRun(uri, experiment.experiment_id, found[0].info.run_id) if len(found) == 1 else None


def _find_child(
    client: MlflowClient, experiment_id: str, parent_run_id: str | None, run_name: str
) -> str | None:
    """Return the id of a running child run of this name, which a lost driver may have opened."""
    if parent_run_id is None:
        return None
    is_child = f"tags.`mlflow.parentRunId` = '{parent_run_id}'"
    condition = f"{is_child} and attributes.run_name = '{run_name}' and status = 'RUNNING'"
    found = client.search_runs([experiment_id], condition)
    return str(found[0].info.run_id) if found else None


def end_run(
    uri: str,
    run_id: str,
    status: Status,
    *,
    folder: Path,
    tags: Mapping[str, str] | None = None,
    files: Sequence[Path] = (),
    model: Event | None = None,
) -> str | None:
    """Deliver the results that wait in the run's folder, then tags, files, a logged model and the status.

    Files in a subfolder of the run's folder become artifacts in a folder of the same name.

    Returns:
        A message about what MLflow did not take, or None.
    """
    sender = Sender(uri, run_id, folder, on_message=_ignore)
    sender.flush(CLOSING_SECONDS)
    for name, value in (tags or {}).items():
        sender.post({"kind": "tag", "name": name, "value": value})
    _post_files(sender, folder, files)
    if model is not None:
        sender.post(model)
    sender.post({"kind": "end", "status": status, "time_ms": now_ms()})
    return sender.undelivered()


def add_files(uri: str, run_id: str, folder: Path, files: Sequence[Path]) -> str | None:
    """Add artifacts to an ended run; return a message about what MLflow did not take, or None."""
    sender = Sender(uri, run_id, folder, on_message=_ignore)
    _post_files(sender, folder, files)
    return sender.undelivered()


def _post_files(sender: Sender, folder: Path, files: Sequence[Path]) -> None:
    for path in (file.resolve() for file in files):
        subfolder = path.parent.name if path.parent != folder.resolve() else None
        sender.post({"kind": "file", "path": path_in_folder(folder, path), "artifact_folder": subfolder})


def deliver(folder: Path, uri: str, run_id: str) -> str | None:
    """Deliver the waiting results of an ended run; return a message about what MLflow did not take."""
    sender = Sender(uri, run_id, folder, on_message=_ignore)
    sender.flush(float("inf"))
    return sender.undelivered()


def _reopen(client: MlflowClient, uri: Uri, run_id: str) -> MlflowRun:
    try:
        client.update_run(run_id, status="RUNNING")
    except MlflowException as error:
        raise UserError(
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
        UNITS_TAG: json.dumps(_units(config), ensure_ascii=False),
    }
    return {name: value for name, value in tags.items() if value}


def _units(config: settings.ExperimentConfig) -> dict[str, str]:
    """Return the unit of each logged reward and metric, by name such as ``eval/reward/hps``."""
    classes = {
        f"eval/reward/{spec.name}": rewards.resolve(spec.reward)
        for spec in (*config.rewards, *config.eval_rewards)
    }
    classes |= metrics.measured_metrics(config)
    return {name: str(getattr(each, "unit", "")) for name, each in classes.items()}


def _params(config: settings.ExperimentConfig) -> list[Param]:
    flat = settings.flatten(config.model_dump(mode="json", exclude={"description"}))
    return [
        Param(re.sub(r"[^/\w.\- :]", "_", name)[:250], _param_value(name, value))
        for name, value in flat.items()
    ]


def _param_value(name: str, value: object) -> str:
    if name.startswith("prompts.") and isinstance(value, list):
        return f"{len(value)} prompts, sha256 {digest(chr(10).join(value))}"
    text = str(value)
    return (
        text if len(text) <= LONGEST_PARAMETER else f"{text[: LONGEST_PARAMETER - 30]}… sha256 {digest(text)}"
    )


def _ignore(_message: str) -> None:
    """Drop messages of a sender: `end_run` returns what the user needs to know."""


def deliver_waiting(folder: Path) -> str:
    """Deliver the results that wait in a run's folder to the MLflow run recorded there; return a message.

    Raises:
        UserError: the folder is missing, its waiting results are damaged, or the server needs a password
            that is not in the environment.
        RunFailed: MLflow did not take all of them.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give the folder of a run, such as runs/NAME")
    header, events = read(folder)
    if not events:
        return f"nothing waits in {folder}"
    uri = tracking_uri(header["uri"])
    if undelivered := deliver(folder, uri, header["run_id"]):
        raise RunFailed(undelivered)
    return f"{len(events)} results delivered to MLflow run {header['run_id']} at {uri}"
