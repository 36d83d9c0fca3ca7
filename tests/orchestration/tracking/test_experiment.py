"""The experiment's tags in a real MLflow database."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from vader_ray.orchestration.tracking.experiment import find_or_create_experiment
from vader_ray.orchestration.tracking.pages import how_to_open


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


def tags(uri: str, name: str) -> dict[str, str]:
    client = MlflowClient(tracking_uri=uri)
    return dict(client.get_experiment(find_or_create_experiment(client, uri, name)).tags)


def test_a_new_experiment_is_one_of_model_training(uri: str) -> None:
    found = tags(uri, "new")
    assert found["mlflow.experimentKind"] == "custom_model_development"
    sections = json.loads(found["mlflow.sharedViewState.vader_ray"])["compareRunSections"]
    assert sections[0]["name"] == "eval/reward"
    assert sections[-1]["name"] == "cost"


@pytest.mark.parametrize(
    ("kind", "kept"),
    [
        ("genai_development_inferred", "custom_model_development"),
        ("no_inferred_type", "custom_model_development"),
        ("genai_development", "genai_development"),
        ("finetuning", "finetuning"),
    ],
)
def test_a_kind_that_mlflow_inferred_is_replaced_and_a_chosen_one_is_kept(
    uri: str, kind: str, kept: str
) -> None:
    MlflowClient(tracking_uri=uri).create_experiment(kind, tags={"mlflow.experimentKind": kind})
    assert tags(uri, kind)["mlflow.experimentKind"] == kept


def test_a_description_of_a_person_is_kept(uri: str) -> None:
    MlflowClient(tracking_uri=uri).create_experiment("described", tags={"mlflow.note.content": "Ours."})
    assert tags(uri, "described")["mlflow.note.content"] == "Ours."


def test_artifacts_of_a_new_experiment_are_next_to_the_database(uri: str) -> None:
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment(find_or_create_experiment(client, uri, "artifacts"))
    folder = Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts"
    assert experiment.artifact_location == folder.as_uri()


def test_a_database_is_opened_by_a_command_and_a_server_by_its_page() -> None:
    command, page = how_to_open("sqlite:////lab/my runs/mlflow.db", "3").splitlines()
    assert command.endswith("mlflow ui --backend-store-uri 'sqlite:////lab/my runs/mlflow.db'")
    assert page.startswith("http://127.0.0.1:5000/#/experiments/3/runs?workflowType=machine_learning")
    assert how_to_open("http://lab:5000/", "3").startswith("http://lab:5000/#/experiments/3/runs?")
