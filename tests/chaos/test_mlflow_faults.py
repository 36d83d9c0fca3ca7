"""Faults of MLflow while a run goes on: training continues, and every step is there once when they end."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.campaign import assert_identical, tracked
from tests.helpers.mlflow_server import FaultyProxy, server
from tests.helpers.network import free_port
from tests.helpers.recipe import tiny_config
from tests.helpers.runs import adapter_files, open_here, record, train_here
from vader_ray.config import ExperimentConfig
from vader_ray.errors import RunFailed, UserError
from vader_ray.orchestration.tracking.mlflow_client import MlflowClient
from vader_ray.orchestration.tracking.mlflow_runs import deliver_waiting, end_run
from vader_ray.training.events import StepEvent

NUM_STEPS = 4
OnStep = Callable[[StepEvent], None]


def _config(weights: Path, uri: str) -> ExperimentConfig:
    tracking: dict[str, Any] = {"uri": uri, "system_metrics": False}
    evaluation = {"every": 2, "num_videos": 2, "num_shown": 1}
    return tiny_config(weights, num_steps=NUM_STEPS, evaluation=evaluation, tracking=tracking)


@pytest.fixture(scope="module")
def undisturbed(tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run and of its database."""
    folder = tmp_path_factory.mktemp("mlflow-faults")
    record(_config(tiny_pipeline_folder, f"sqlite:///{folder}/mlflow.db"), folder, "straight")
    return folder


@pytest.fixture
def database(undisturbed: Path) -> str:
    return f"sqlite:///{undisturbed}/mlflow.db"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    with server(f"sqlite:///{folder}/mlflow.db", free_port()) as address:
        yield address


@pytest.fixture
def proxy(address: str) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(address)
    yield proxy
    proxy.close()


def _at(steps: Mapping[int, Callable[[], object]]) -> OnStep:
    """Call a function after a step."""

    def on_step(event: StepEvent) -> None:
        steps.get(event.step, lambda: None)()

    return on_step


def _run_and_end(config: ExperimentConfig, folder: Path, name: str, on_step: OnStep) -> str | None:
    """Train and end a run; return what MLflow did not take."""
    run, mlflow_run = train_here(config, folder / "runs", name, on_step=on_step)
    return end_run(mlflow_run.uri, mlflow_run.run_id, "FINISHED", folder=run.path)


@pytest.mark.chaos
@pytest.mark.parametrize("fault", ["refuse", "hang", "500"])
def test_a_server_that_fails_for_some_steps_has_every_step_once(
    fault: str, proxy: FaultyProxy, undisturbed: Path, tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    on_step = _at({1: lambda: proxy.break_down(fault), NUM_STEPS: proxy.mend})
    config = _config(tiny_pipeline_folder, proxy.address)
    assert _run_and_end(config, tmp_path, "mine", on_step) is None
    assert_identical(tmp_path / "runs" / "mine", undisturbed / "runs" / "straight")


@pytest.mark.chaos
@pytest.mark.parametrize("fault", ["refuse", "hang", "500"])
def test_a_server_that_fails_until_after_the_end_has_every_step_once_when_it_is_back(
    fault: str, proxy: FaultyProxy, undisturbed: Path, tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    config = _config(tiny_pipeline_folder, proxy.address)
    run = tmp_path / "runs" / "mine"
    undelivered = _run_and_end(config, tmp_path, "mine", _at({1: lambda: proxy.break_down(fault)}))
    assert f"vader-ray sync {run}" in str(undelivered)
    assert adapter_files(run) == adapter_files(undisturbed / "runs" / "straight")
    with pytest.raises(RunFailed, match="did not take"):
        deliver_waiting(run)
    with pytest.raises(UserError, match=rf"MLflow at {proxy.address} does not work .*; start it"):
        open_here(config, tmp_path / "runs", "other")
    proxy.mend()
    assert "results delivered" in deliver_waiting(run)
    assert_identical(run, undisturbed / "runs" / "straight")


@pytest.mark.chaos
def test_a_database_that_is_locked_for_some_steps_has_every_step_once(
    database: str, undisturbed: Path, tiny_pipeline_folder: Path
) -> None:
    other = sqlite3.connect(database.removeprefix("sqlite:///"), isolation_level=None)
    steps = {1: lambda: other.execute("BEGIN EXCLUSIVE"), NUM_STEPS: lambda: other.execute("ROLLBACK")}
    assert _run_and_end(_config(tiny_pipeline_folder, database), undisturbed, "locked", _at(steps)) is None
    other.close()
    assert_identical(undisturbed / "runs" / "locked", undisturbed / "runs" / "straight")


@pytest.mark.chaos
@pytest.mark.parametrize("deleted", ["run", "experiment"])
def test_a_run_that_is_deleted_in_mlflow_ends_whole_and_is_delivered_when_it_is_restored(
    deleted: str, database: str, undisturbed: Path, tiny_pipeline_folder: Path
) -> None:
    client, name = MlflowClient(database), f"deleted-{deleted}"
    config = _config(tiny_pipeline_folder, database)
    config = config.model_copy(
        update={"tracking": config.tracking.model_copy(update={"experiment": f"experiment of {name}"})}
    )
    run = undisturbed / "runs" / name
    folder, mlflow_run = open_here(config, undisturbed / "runs", name)
    the_id = mlflow_run.run_id if deleted == "run" else mlflow_run.experiment_id
    undelivered = _run_and_end(
        config, undisturbed, name, _at({1: lambda: getattr(client, f"delete_{deleted}")(the_id)})
    )
    assert f"vader-ray sync {run}" in str(undelivered)
    assert "deleted" in str(undelivered)
    assert adapter_files(run) == adapter_files(undisturbed / "runs" / "straight")
    with pytest.raises(UserError, match=f"cannot continue run {mlflow_run.run_id} .*Restore it with"):
        open_here(config, undisturbed / "runs", name)
    getattr(client, f"restore_{deleted}")(the_id)
    assert "results delivered" in deliver_waiting(folder.path)
    assert tracked(run) == tracked(undisturbed / "runs" / "straight")
