"""The best adapter in MLflow: a logged model with its files, card and rewards, however often it is sent."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

from vader_ray.orchestration.publishing.best_adapter import logged_adapter
from vader_ray.orchestration.runs.run_dir import RunDir
from vader_ray.orchestration.tracking.logged_model import send_model


@pytest.mark.slow
def test_the_best_adapter_is_a_logged_model_with_its_card(run: RunDir, tmp_path: Path) -> None:
    summary = run.read_summary()
    assert summary is not None
    client = MlflowClient(summary.tracking_uri)
    send_model(client, summary.mlflow_run_id, run.path, logged_adapter(run, summary))  # a second time
    (model,) = client.search_logged_models([summary.mlflow_experiment_id])
    assert (model.name, str(model.status), model.source_run_id) == (
        "best_adapter", "READY", summary.mlflow_run_id,
    )  # fmt: skip
    outputs = client.get_run(summary.mlflow_run_id).outputs
    assert [(each.model_id, each.step) for each in outputs.model_outputs] == [
        (model.model_id, summary.best_step)
    ]
    copy = Path(download_artifacts(artifact_uri=model.artifact_location, dst_path=str(tmp_path)))
    for path in run.best_adapter.iterdir():
        assert (copy / path.name).read_bytes() == path.read_bytes()
    card = run.model_card.read_text(encoding="utf-8")
    assert (copy / "model_card.md").read_text(encoding="utf-8") == card
    assert "## Rewards on test prompts" in model.tags["mlflow.note.content"]
    assert f"{summary.metrics_test['test/reward/brightness']:.3f}" in card
    rewards = {metric.key: metric.value for metric in model.metrics}
    assert rewards == {
        name: summary.metrics_best[name] for name in ("eval/reward/brightness", "eval/reward/colorfulness")
    }
    tested = client.get_metric_history(summary.mlflow_run_id, "test/gain/brightness")
    assert [(point.step, point.value) for point in tested] == [
        (2, summary.metrics_test["test/gain/brightness"])
    ]
    history = client.get_metric_history(summary.mlflow_run_id, "eval/reward/brightness")
    assert [point.step for point in history] == [0, 2], "the run has each of its points once"
