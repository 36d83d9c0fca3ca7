"""The MLflow experiment of a run, set up for MLflow's pages of model training."""

from __future__ import annotations

from vader_ray.errors import UserError
from vader_ray.orchestration.tracking.mlflow_client import Experiment, MlflowClient, MlflowException
from vader_ray.orchestration.tracking.pages import CHARTS_VIEW, charts_view
from vader_ray.orchestration.tracking.server import SQLITE, database_path

KIND_TAG = "mlflow.experimentKind"
KIND = "custom_model_development"
"""Kind of an experiment with training runs. MLflow guesses the kind of an experiment without the tag."""
NOTE_TAG = "mlflow.note.content"
NOTE = 'Training runs of vader_ray: choose "Model training" at the top left.'
"""Description of the experiment. In a new browser, MLflow 3.17 opens every experiment on its GenAI pages, whatever its kind."""


def find_or_create_experiment(client: MlflowClient, uri: str, name: str) -> str:
    """Return the id of the experiment called `name`; create it, and its tags, where they are missing.

    A SQLite database keeps the artifacts of a new experiment in ``mlartifacts/`` next to it.
    """
    experiment = client.get_experiment_by_name(name) or _create(client, uri, name)
    if experiment.lifecycle_stage != "active":
        raise UserError(
            f"tracking.experiment: {name!r} was deleted in MLflow; restore it there or choose another name"
        )
    for tag, value in _missing_tags(experiment.tags).items():
        client.set_experiment_tag(experiment.experiment_id, tag, value)
    return str(experiment.experiment_id)


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
        f"mlflow.sharedViewState.{CHARTS_VIEW}": charts_view(),
    }
    return {tag: value for tag, value in wanted.items() if tags.get(tag) != value}
