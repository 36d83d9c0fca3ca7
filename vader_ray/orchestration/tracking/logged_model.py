"""An adapter as a logged model of MLflow: files, card and rewards, without pickle and without a flavor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vader_ray.orchestration.tracking.mlflow_client import LoggedModel, LoggedModelOutput, MlflowClient
from vader_ray.orchestration.tracking.outbox import Event, path_in_folder

STEP_TAG, NOTE_TAG = "vader_ray.step", "mlflow.note.content"
LONGEST_NOTE = 5000
"""Characters of a card that is also the model's description in MLflow, whose tags have a longest length."""


def model_event(
    folder: Path,
    adapter: Path,
    card: Path,
    step: int,
    *,
    params: Mapping[str, str],
    metrics: Sequence[str],
) -> Event:
    """Return the event of an adapter.

    Args:
        folder: the run's folder.
        adapter: folder of the adapter, in the run's folder.
        card: its model card, in the run's folder.
        step: step after which it was saved.
        params: its settings.
        metrics: names of the run's metrics at this step that describe it.
    """
    return {
        "kind": "model",
        "name": adapter.name,
        "path": path_in_folder(folder, adapter),
        "card": path_in_folder(folder, card),
        "step": step,
        "params": dict(params),
        "metrics": list(metrics),
    }


def send_model(client: MlflowClient, run_id: str, folder: Path, event: Event) -> None:
    """Send an adapter as a logged model of a run; one that an earlier attempt began is completed.

    Args:
        folder: the run's folder.
        event: made by `model_event`.
    """
    card = folder / event["card"]
    model = _find(client, run_id, event["step"]) or _create(client, run_id, event, card)
    client.log_model_artifacts(model.model_id, str(folder / event["path"]))
    client.log_model_artifact(model.model_id, str(card))
    for name in event["metrics"]:
        for point in client.get_metric_history(run_id, name):
            if point.step == event["step"]:  # with its own time, so that the run has it once
                client.log_metric(
                    run_id, name, point.value, point.timestamp, point.step, model_id=model.model_id
                )
    outputs = client.get_run(run_id).outputs
    if not any(output.model_id == model.model_id for output in (outputs.model_outputs if outputs else ())):
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, event["step"])])
    client.finalize_logged_model(model.model_id, "READY")


def _find(client: MlflowClient, run_id: str, step: int) -> LoggedModel | None:
    experiment = client.get_run(run_id).info.experiment_id
    found = client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'")
    return next((model for model in found if model.tags.get(STEP_TAG) == str(step)), None)


def _create(client: MlflowClient, run_id: str, event: Event, card: Path) -> LoggedModel:
    text = card.read_text(encoding="utf-8")
    text = text.rpartition("\n---\n")[2].strip()  # without the block of YAML
    note = {NOTE_TAG: text} if len(text) <= LONGEST_NOTE else {}
    return client.create_logged_model(
        client.get_run(run_id).info.experiment_id,
        name=event["name"],
        source_run_id=run_id,
        tags={STEP_TAG: str(event["step"])} | note,
        params=event["params"],
        model_type="adapter",
    )
