"""The MLflow experiment of a run, set up for MLflow's pages of model training."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

from vader_ray.orchestration.tracking.mlflow_client import Experiment, MlflowClient, MlflowException
from vader_ray.orchestration.tracking.server import SQLITE, TrackingError, database_path

KIND_TAG = "mlflow.experimentKind"
KIND = "custom_model_development"
"""Kind of an experiment with training runs. MLflow guesses the kind of an experiment without the tag."""
NOTE_TAG = "mlflow.note.content"
NOTE = 'Training runs of vader_ray: choose "Model training" at the top left.'
"""Description of the experiment. In a new browser, MLflow 3.17 opens every experiment on its GenAI pages, whatever its kind."""
CHARTS = "vader_ray"
"""Key of the shared view that holds the order of the charts."""
TRAINING_PAGES = "workflowType=machine_learning"
"""Query of a URL that selects the menu of model training."""
UI_ADDRESS = "http://127.0.0.1:5000"
"""Address of ``mlflow ui`` unless its options name another one."""
SECTIONS = {
    **dict.fromkeys(("eval/reward", "train/reward", "train", "eval", "eval/gain"), True),
    **dict.fromkeys(("eval/caption_accuracy", "eval/gain_low", "eval/gain_high", "eval/gain_standard_error"), False),
    "guard": True,
    **dict.fromkeys(("guard/fall", "guard/fall/reward", "guard/beyond", "guard/beyond/reward"), False),
    **dict.fromkeys(("train/gradient_norm", "time", "memory", "cost"), True),
}
"""Sections of the chart page, first to last, and whether each is unfolded.

A metric's section is its name up to the last slash. MLflow itself sorts sections by name.
"""


def find_or_create_experiment(client: MlflowClient, uri: str, name: str) -> str:
    """Return the id of the experiment called `name`; create it, and its tags, where they are missing.

    A SQLite database keeps the artifacts of a new experiment in ``mlartifacts/`` next to it.
    """
    experiment = client.get_experiment_by_name(name) or _create(client, uri, name)
    if experiment.lifecycle_stage != "active":
        raise TrackingError(
            f"tracking.experiment: {name!r} was deleted in MLflow; restore it there or choose another name"
        )
    for tag, value in _missing_tags(experiment.tags).items():
        client.set_experiment_tag(experiment.experiment_id, tag, value)
    return str(experiment.experiment_id)


def charts_page(address: str, experiment_id: str) -> str:
    """Return the URL of an experiment's runs among the pages of model training, with charts in the order of `SECTIONS`."""
    query = f"{TRAINING_PAGES}&compareRunsMode=CHART&viewStateShareKey={CHARTS}"
    return f"{address.rstrip('/')}/#/experiments/{experiment_id}/runs?{query}"


def run_page(address: str, experiment_id: str, run_id: str, tab: str = "") -> str:
    """Return the URL of a run's page, or of a tab of it such as ``model-metrics``."""
    return f"{address.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}/{tab}?{TRAINING_PAGES}"


def how_to_open(uri: str, experiment_id: str) -> str:
    """Return the page of an experiment's charts, after the command that serves it where MLflow is a SQLite database."""
    if uri.startswith(SQLITE):
        command = f"{Path(sys.executable).parent / 'mlflow'} ui --backend-store-uri {shlex.quote(uri)}"
        return f"{command}\n{charts_page(UI_ADDRESS, experiment_id)}"
    return charts_page(uri, experiment_id) if uri.startswith("http") else uri


def _create(client: MlflowClient, uri: str, name: str) -> Experiment:
    artifacts = (database_path(uri).parent / "mlartifacts").as_uri() if uri.startswith(SQLITE) else None
    try:
        return client.get_experiment(client.create_experiment(name, artifact_location=artifacts))
    except MlflowException:
        experiment = client.get_experiment_by_name(name)  # another driver was faster
        if experiment is None:
            raise
        return experiment


def _missing_tags(tags: dict[str, str]) -> dict[str, str]:
    """Return the tags to set. A kind or a description that a person chose in MLflow stays; an inferred kind does not."""
    kind, note = tags.get(KIND_TAG, "inferred"), tags.get(NOTE_TAG, NOTE)
    wanted = {
        KIND_TAG: KIND if "inferred" in kind else kind,
        NOTE_TAG: note,
        f"mlflow.sharedViewState.{CHARTS}": _view_state(),
    }
    return {tag: value for tag, value in wanted.items() if tags.get(tag) != value}


def _view_state() -> str:
    """State of MLflow's chart page, as its "Share" button writes it; MLflow adds the charts to their sections by itself."""
    sections = [
        {"uuid": name, "name": name, "display": unfolded, "isReordered": False, "isGenerated": True}
        for name, unfolded in SECTIONS.items()
    ]
    return json.dumps({"compareRunCharts": [], "compareRunSections": sections, "isAccordionReordered": True})
