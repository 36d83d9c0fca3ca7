"""The notebook and the example scripts run from top to bottom."""

from __future__ import annotations

import os
import runpy
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers.paths import REPOSITORY

EXAMPLES = REPOSITORY / "examples"


@pytest.mark.slow
@pytest.mark.ray
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    for cell in notebook.cells:  # two steps instead of eight, and two videos of each evaluation
        cell.source = cell.source.replace("num_steps=8", "num_steps=2").replace('": 8', '": 2')
    NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    pages = [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    assert any("<table>" in page and "data:image/png;base64," in page for page in pages)
    assert (tmp_path / "red_star.mp4").stat().st_size > 0
    nbformat.write(notebook, tmp_path / "executed.ipynb")


@pytest.mark.slow
def test_a_pipeline_in_memory_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "own_pipeline.py"))["main"](num_steps=2)
    assert (tmp_path / "my_adapter").is_dir()


@pytest.mark.chaos
@pytest.mark.ray
def test_a_function_is_trained_as_a_reward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    runpy.run_path(str(EXAMPLES / "own_reward.py"))["main"](num_steps=2)
    printed = capsys.readouterr().out
    assert "contrast: " in printed
    assert "hps: " in printed
