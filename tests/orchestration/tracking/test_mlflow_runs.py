"""MLflow through real databases and a real server: each result arrives once, and a dead server never stops
anybody."""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image
from typer.testing import CliRunner

from tests.helpers.local_run import run_locally
from tests.helpers.mlflow_server import environment, server
from tests.helpers.network import failing_server, free_port, refusing_server
from tests.helpers.recipe import tiny_config
from tests.helpers.waiting import wait_until
from vader_ray import config as settings
from vader_ray.cli import app
from vader_ray.errors import UserError
from vader_ray.orchestration.runs.run_dir import open_run_dir
from vader_ray.orchestration.tracking import mlflow_runs, sender
from vader_ray.orchestration.tracking.server import check_server, tracking_uri
from vader_ray.orchestration.tracking.tracker import Tracker
from vader_ray.training.events import StepEvent


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite database with MLflow's tables; making them takes some seconds, so tests copy it."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    check_server(f"sqlite:///{path}")
    return path


@pytest.fixture
def uri(empty_database: Path, tmp_path: Path) -> str:
    folder = tmp_path / "my runs"
    folder.mkdir()
    shutil.copy(empty_database, folder / "mlflow.db")
    return f"sqlite:///{folder}/mlflow.db"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    return path


SYSTEM_METRIC = "system/cpu_utilization_percentage"


def recipe(uri: str | None, **changes: object) -> settings.ExperimentConfig:
    document = {
        "name": "test",
        "description": "A recipe of the *tests*.",
        "num_steps": 4,
        "videos_per_step": 2,
        "model": {"family": "modelscope", "weights": "owner/name"},
        "prompts": {"train": [f"prompt {index}" for index in range(300)], "validation": ["other"]},
        "sampling": {"num_frames": 4, "height": 32, "width": 32},
        "rewards": [{"reward": "hps", "option (odd)": 1}],
        "tracking": {"uri": uri, "experiment": "tests"},
    }
    return settings.validate({**document, **changes})


def open_run(uri: str) -> str:
    return mlflow_runs.start_run(recipe(uri), "run", "name: test\n").run_id


def metrics(step: int, offset: float = 0.0) -> dict[str, float]:
    return {"cost/reward_queries": 2.0 * step, "train/reward_mean": step + offset, "train/reward/hps": 0.1}


def history(uri: str, run_id: str, name: str = "train/reward_mean") -> list[tuple[int, float]]:
    return [
        (metric.step, metric.value)
        for metric in MlflowClient(tracking_uri=uri).get_metric_history(run_id, name)
    ]


def artifacts(uri: str, run_id: str, path: str | None = None) -> list[str]:
    return [entry.path for entry in MlflowClient(tracking_uri=uri).list_artifacts(run_id, path)]


def silent(_line: str) -> None:
    return


# ---- the address


def test_uri_is_explicit_then_environment_then_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(None) == f"sqlite:///{tmp_path}/mlflow.db"
    assert tracking_uri("sqlite:///sub/a.db") == f"sqlite:///{tmp_path}/sub/a.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking_uri(None) == "http://server:5000"
    assert tracking_uri("sqlite:////data/a.db") == "sqlite:////data/a.db"


def test_the_password_that_a_file_of_a_run_lacks_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        UserError, match=r"http://\*\*\*@host lacks its password, .* MLFLOW_TRACKING_PASSWORD$"
    ):
        tracking_uri("http://***@host")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:pw@other")
    with pytest.raises(UserError, match=r"MLFLOW_TRACKING_URI to the whole URI$"):
        tracking_uri("postgresql://***@host/db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:pw@host")
    assert tracking_uri("http://***@host") == tracking_uri(None) == "http://me:pw@host"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://***@host")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "pw")
    assert tracking_uri(None) == "http://host"


@pytest.mark.parametrize("wrong", ["./mlruns", "file:///data/mlruns", "localhost:5000"])
def test_what_is_no_server_is_refused(wrong: str) -> None:
    with pytest.raises(UserError, match="not an MLflow server or database"):
        tracking_uri(wrong)


def test_a_server_that_is_down_is_reported() -> None:
    with pytest.raises(
        UserError, match=r"tracking.uri: MLflow at http://127.0.0.1:\d+ does not work \(.*refused\)"
    ):
        check_server(f"http://127.0.0.1:{free_port()}")


def test_a_server_that_fails_is_tried_twice_and_no_more() -> None:
    """MLflow's own default is to try for four minutes."""
    with failing_server(hang=False) as failing:
        with pytest.raises(UserError, match=rf"MLflow at {failing.address} does not work"):
            check_server(failing.address)
        assert failing.num_connections == 2


def test_a_server_that_wants_a_password_is_reported() -> None:
    with refusing_server() as address, pytest.raises(UserError, match="set MLFLOW_TRACKING_USERNAME and"):
        check_server(address)


def test_an_unwritable_database_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="make it writable"):
        check_server(f"sqlite:///{tmp_path}/file/mlflow.db")


# ---- the driver


def test_a_run_opens_with_all_that_reproduces_it(uri: str) -> None:
    run = mlflow_runs.start_run(
        recipe(uri), "my run", "name: test\n", parent_run_id="0" * 32, tags={"sweep": "k"}
    )
    client = MlflowClient(tracking_uri=uri)
    data = client.get_run(run.run_id).data
    inputs = client.get_run(run.run_id).inputs.dataset_inputs
    assert [(each.tags[0].value, json.loads(each.dataset.profile)["num_rows"]) for each in inputs] == [
        ("training", 300),
        ("validation", 1),
    ]
    assert data.params["prompts.train"] == f"300 prompts, sha256 {inputs[0].dataset.digest}"
    assert "cosine" in json.loads(data.tags["vader_ray.units"])["eval/reward/hps"]
    assert data.params["sampling.num_frames"] == "4"
    assert data.params["rewards.0.option _odd_"] == "1"
    assert data.params["prompts.train"].startswith("300 prompts, sha256 ")
    assert data.tags["mlflow.parentRunId"] == "0" * 32
    assert data.tags["mlflow.note.content"] == "A recipe of the *tests*."
    assert (data.tags["recipe"], data.tags["sweep"], data.tags["mlflow.runName"]) == ("test", "k", "my run")
    assert artifacts(uri, run.run_id) == ["environment.txt", "recipe.yaml"]
    database = Path(uri.removeprefix("sqlite:///"))
    (environment,) = (database.parent / "mlartifacts").rglob("environment.txt")
    assert "\nmlflow==" in environment.read_text()


def test_long_values_fit_and_differ(uri: str) -> None:
    values = set()
    for ending in "ab":
        long = {"num_frames": 4, "height": 32, "width": 32, "negative_prompt": "x" * 9000 + ending}
        run = mlflow_runs.start_run(recipe(uri, sampling=long), "run", "")
        values.add(MlflowClient(tracking_uri=uri).get_run(run.run_id).data.params["sampling.negative_prompt"])
    assert len(values) == 2
    assert max(len(value) for value in values) <= 500


def test_a_run_ends_and_is_opened_again(uri: str, folder: Path) -> None:
    first = mlflow_runs.start_run(recipe(uri), "run", "")
    assert mlflow_runs.end_run(uri, first.run_id, "KILLED", folder=folder) is None
    client = MlflowClient(tracking_uri=uri)
    assert client.get_run(first.run_id).info.status == "KILLED"
    assert mlflow_runs.start_run(recipe(uri, num_steps=9), "run", "", resume_run_id=first.run_id) == first
    assert client.get_run(first.run_id).info.status == "RUNNING"
    assert client.get_run(first.run_id).data.params["num_steps"] == "4"


def test_a_child_run_that_was_opened_and_not_noted_down_is_found_again(uri: str, folder: Path) -> None:
    def start() -> str:
        return mlflow_runs.start_run(recipe(uri), "K=1", "", parent_run_id="1" * 32).run_id

    first = start()
    assert start() == first
    assert mlflow_runs.start_run(recipe(uri), "K=2", "", parent_run_id="1" * 32).run_id != first
    assert mlflow_runs.end_run(uri, first, "FINISHED", folder=folder) is None
    assert start() != first


def test_a_run_of_another_server_cannot_be_continued(uri: str) -> None:
    with pytest.raises(UserError, match=r"cannot continue run 0000.*not found"):
        mlflow_runs.start_run(recipe(uri), "run", "", resume_run_id="0" * 32)


def test_a_deleted_experiment_is_reported(uri: str) -> None:
    experiment_id = mlflow_runs.start_run(recipe(uri), "run", "").experiment_id
    MlflowClient(tracking_uri=uri).delete_experiment(experiment_id)
    with pytest.raises(UserError, match="was deleted in MLflow"):
        open_run(uri)


# ---- the worker


def test_a_resumed_run_has_each_step_once(uri: str, folder: Path) -> None:
    run_id = open_run(uri)
    killed = Tracker(uri, run_id, folder, system_metrics=False)
    for step in range(6):
        killed.log(step, metrics(step))
    resumed = Tracker(uri, run_id, folder, system_metrics=False)  # from the checkpoint of step 2
    for step in range(3, 9):
        resumed.log(step, metrics(step, offset=0.5))
    assert resumed.close() is None
    assert history(uri, run_id) == [(step, step + (0.5 if step > 5 else 0)) for step in range(9)]


def test_values_that_are_not_finite_arrive(uri: str, folder: Path) -> None:
    run_id = open_run(uri)
    tracker = Tracker(uri, run_id, folder, system_metrics=False)
    tracker.log(1, metrics(1) | {"train/grad_norm": math.nan})
    assert tracker.close() is None
    assert math.isnan(history(uri, run_id, "train/grad_norm")[0][1])


def test_images_get_one_card_per_step(uri: str, folder: Path) -> None:
    run_id = open_run(uri)
    for _process in range(2):
        tracker = Tracker(uri, run_id, folder, system_metrics=False)
        for step in (0, 5):
            tracker.log_image("eval/videos", step, Image.new("RGB", (64, 64), "red"))
        assert tracker.close() is None
    cards = sorted(
        path.split("+timestamp")[0] for path in artifacts(uri, run_id, "images") if path.endswith(".png")
    )
    assert cards == ["images/eval~videos+step+0", "images/eval~videos+step+5"]
    assert not list(folder.iterdir())


@pytest.mark.slow
def test_an_image_whose_last_request_failed_is_there_once(uri: str, folder: Path) -> None:
    run_id = open_run(uri)
    tracker = Tracker(f"{uri}?timeout=0.1", run_id, folder, system_metrics=False, on_message=silent)
    other = sqlite3.connect(uri.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")  # so that the tag, which MLflow sets last, cannot be written
    tracker.log_image("eval/videos", 0, Image.new("RGB", (64, 64), "red"))
    other.execute("ROLLBACK")
    other.close()
    assert tracker.close() is None
    assert len([path for path in artifacts(uri, run_id, "images") if path.endswith(".png")]) == 1
    assert MlflowClient(tracking_uri=uri).get_run(run_id).data.tags["mlflow.loggedImages"] == "True"


def test_files_arrive(uri: str, folder: Path) -> None:
    run_id = open_run(uri)
    (folder / "a.txt").write_text("a")
    tracker = Tracker(uri, run_id, folder, system_metrics=False)
    tracker.log_file(folder / "a.txt", "videos/step-0005")
    assert tracker.close() is None
    assert artifacts(uri, run_id, "videos/step-0005") == ["videos/step-0005/a.txt"]


def test_a_database_of_another_machine_is_reported(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UserError, match="not on this machine"):
        Tracker(f"sqlite:///{tmp_path}/elsewhere.db", "0" * 32, folder)
    assert not (tmp_path / "elsewhere.db").exists()


def test_system_metrics_continue_after_resume_and_stop(
    uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    run_id = open_run(uri)
    for process in (1, 2):
        tracker = Tracker(uri, run_id, folder)
        wait_until(lambda: len(history(uri, run_id, SYSTEM_METRIC)) >= 2 * process)  # noqa: B023
        tracker.close()
        assert not [thread for thread in threading.enumerate() if "SystemMetrics" in thread.name]
    steps = [step for step, _ in history(uri, run_id, SYSTEM_METRIC)]
    assert len(steps) >= 4
    assert steps == list(range(len(steps)))


@pytest.mark.slow
def test_nothing_is_printed(uri: str, folder: Path) -> None:
    program = f"""
from pathlib import Path
from vader_ray import config
from vader_ray.orchestration.tracking import mlflow_runs, tracker
run = mlflow_runs.start_run(config.validate({recipe(f"{uri}.new").model_dump(mode="json")!r}), "run", "")
logger = tracker.Tracker(run.uri, run.run_id, Path({str(folder)!r}))
logger.log(1, {metrics(1)!r})
logger.close()
mlflow_runs.end_run(run.uri, run.run_id, "FINISHED", folder=Path({str(folder)!r}))
address, folder = "http://127.0.0.1:{free_port()}", Path({str(folder)!r})
nobody = tracker.Tracker(address, run.run_id, folder, on_message=lambda line: None)
nobody.log(2, {metrics(2)!r})
nobody.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env=environment()
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# ---- while the server is down


def log_to_nobody(run_id: str, folder: Path) -> list[str]:
    """Steps 0 to 4, an image, a file and the end of a run, while its server is down; what the user was
    told."""
    told: list[str] = []
    nobody = f"http://127.0.0.1:{free_port()}"
    (folder / "a.txt").write_text("a")
    tracker = Tracker(nobody, run_id, folder, on_message=told.append)
    for step in range(5):
        tracker.log(step, metrics(step))
    tracker.log_image("videos", 3, Image.new("RGB", (64, 64), "red"))
    tracker.log_file(folder / "a.txt")
    told.append(tracker.close() or "")
    told.append(mlflow_runs.end_run(nobody, run_id, "FINISHED", folder=folder) or "")
    return told


def assert_delivered(uri: str, run_id: str) -> None:
    assert history(uri, run_id) == [(step, float(step)) for step in range(5)]
    assert len([path for path in artifacts(uri, run_id, "images") if path.endswith(".png")]) == 1
    assert "a.txt" in artifacts(uri, run_id)
    assert MlflowClient(tracking_uri=uri).get_run(run_id).info.status == "FINISHED"


def test_results_wait_on_disk_and_are_delivered_once(uri: str, folder: Path) -> None:
    run_id = open_run(uri)
    failure, closing, ending = log_to_nobody(run_id, folder)
    assert "refused" in failure
    assert f"vader-ray sync {folder}" in closing
    assert "did not take 8 results" in ending

    waiting = (folder / "undelivered.jsonl").read_bytes()
    assert mlflow_runs.deliver(folder, uri, run_id) is None
    assert_delivered(uri, run_id)
    assert not (folder / "undelivered.jsonl").exists()

    (folder / "undelivered.jsonl").write_bytes(
        waiting
    )  # killed after the delivery, before the file was removed
    assert mlflow_runs.deliver(folder, uri, run_id) is None
    assert_delivered(uri, run_id)


def test_the_command_delivers_where_the_run_was_logged(uri: str, folder: Path) -> None:
    run_id = open_run(uri)
    log_to_nobody(run_id, folder)
    failed = CliRunner().invoke(app, ["sync", str(folder)])
    assert failed.exit_code == 1
    assert "did not take" in failed.stderr
    header, *events = (folder / "undelivered.jsonl").read_text().splitlines()
    header = json.dumps({**json.loads(header), "uri": uri})
    (folder / "undelivered.jsonl").write_text("\n".join([header, *events, ""]))
    sent = CliRunner().invoke(app, ["sync", str(folder)])
    assert (sent.exit_code, sent.stdout) == (0, f"8 results delivered to MLflow run {run_id} at {uri}\n")
    assert_delivered(uri, run_id)
    assert CliRunner().invoke(app, ["sync", str(folder)]).stdout == f"nothing waits in {folder}\n"


def test_a_later_process_delivers_first_and_goes_on(uri: str, folder: Path) -> None:
    run_id = open_run(uri)
    before = Tracker(uri, run_id, folder, system_metrics=False)
    before.log(0, metrics(0))
    before.log(1, metrics(1, offset=0.25))
    log_to_nobody(run_id, folder)  # as if resumed before step 0: its steps 0 and 1 are known already
    with (folder / "undelivered.jsonl").open("ab") as file:
        file.write(b'{"kind": "metrics", "step": 5, "ti')  # torn by kill -9
    client = MlflowClient(tracking_uri=uri)

    resumed = Tracker(uri, run_id, folder, system_metrics=False, on_message=silent)
    assert (
        client.get_run(run_id).info.status == "RUNNING"
    )  # the end of the earlier process is not the end of the run
    for step in range(3, 8):
        resumed.log(step, metrics(step, offset=0.5))
    assert resumed.close() is None
    assert history(uri, run_id) == [
        (0, 0.0),
        (1, 1.25),
        (2, 2.0),
        (3, 3.0),
        (4, 4.0),
        (5, 5.5),
        (6, 6.5),
        (7, 7.5),
    ]


def test_results_of_another_run_are_not_mixed_in(uri: str, folder: Path) -> None:
    run_id = open_run(uri)
    log_to_nobody(run_id, folder)
    with pytest.raises(UserError, match=f"has results of MLflow run {run_id}"):
        Tracker(uri, open_run(uri), folder)


def test_a_file_that_vanished_is_named_and_does_not_block(uri: str, folder: Path) -> None:
    run_id = open_run(uri)
    log_to_nobody(run_id, folder)
    (folder / "a.txt").unlink()
    told: list[str] = []
    tracker = Tracker(uri, run_id, folder, system_metrics=False, on_message=told.append)
    assert tracker.close() is None
    assert told == [f"{folder}/a.txt was deleted before it was delivered; MLflow will not have it"]


@pytest.mark.slow
def test_a_server_that_hangs_holds_up_one_step_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "RETRY_EVERY_SECONDS", math.inf)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with failing_server(hang=True) as hanging:
        tracker = Tracker(hanging.address, "0" * 32, folder, on_message=silent)
        assert hanging.num_connections == 2  # the attempt of the start and its repetition
        for step in range(20):
            tracker.log(step, metrics(step))
        assert hanging.num_connections == 2
        assert "timed out" in (tracker.close() or "")
        assert hanging.num_connections == 4
    assert len((folder / "undelivered.jsonl").read_text().splitlines()) == 1 + 20  # a header and the steps


@pytest.mark.slow
def test_a_server_killed_in_the_middle_gets_everything_once(
    uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "RETRY_EVERY_SECONDS", 0.5)
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.5")
    port, told = free_port(), list[str]()
    http = f"http://127.0.0.1:{port}"
    with server(uri, port):
        run_id = open_run(http)
        tracker = Tracker(http, run_id, folder, on_message=told.append)
        for step in range(10):
            tracker.log(step, metrics(step))
        tracker.log_image("videos", 0, Image.new("RGB", (64, 64), "red"))
        num_system_metrics = wait_until(lambda: len(history(http, run_id, SYSTEM_METRIC)))
    for step in range(10, 200):
        tracker.log(step, metrics(step))
    tracker.log_image("videos", 150, Image.new("RGB", (64, 64), "blue"))
    (folder / "adapter").mkdir()
    (folder / "adapter" / "weights.bin").write_bytes(b"trained")
    tracker.log_file(folder / "adapter" / "weights.bin", "adapter")
    assert (folder / "undelivered.jsonl").exists()
    later = count(200)

    def log_next_step() -> bool:
        tracker.log(step := next(later), metrics(step))
        return not (folder / "undelivered.jsonl").exists()

    with server(uri, port):
        wait_until(log_next_step)
        wait_until(lambda: len(history(http, run_id, SYSTEM_METRIC)) > num_system_metrics)
        assert tracker.close() is None
        assert mlflow_runs.end_run(http, run_id, "FINISHED", folder=folder) is None
        cards = sorted(
            path.split("+timestamp")[0] for path in artifacts(http, run_id, "images") if path.endswith(".png")
        )
    assert history(uri, run_id) == [(step, float(step)) for step in range(next(later))]
    assert cards == ["images/videos+step+0", "images/videos+step+150"]
    stored = (
        Path(uri.removeprefix("sqlite:///")).parent / "server-artifacts"
    )  # through the server: nothing went there by itself
    assert [path.read_bytes() for path in stored.rglob("weights.bin")] == [b"trained"]
    assert [line.removeprefix(f"MLflow at {http} ").split()[0] for line in told] == ["fails", "works"]
    assert MlflowClient(tracking_uri=uri).get_run(run_id).info.status == "FINISHED"


@pytest.mark.slow
def test_a_run_whose_server_is_killed_and_started_again_is_there_once(
    uri: str, tiny_pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "RETRY_EVERY_SECONDS", 0.5)
    port = free_port()
    config = tiny_config(
        tiny_pipeline_folder, tracking={"uri": f"http://127.0.0.1:{port}", "system_metrics": False}
    )
    folder = open_run_dir(config, tmp_path / "runs", "mine")
    waited = list[bool]()
    with ExitStack() as running:
        running.enter_context(server(uri, port))
        run = mlflow_runs.start_run(config, "mine", folder.recipe.read_text())

        def on_step(event: StepEvent) -> None:
            waited.append((folder.path / "undelivered.jsonl").exists())
            if event.step == 1:
                running.close()
            if event.step == 4:
                running.enter_context(server(uri, port))

        run_locally(config, folder, run, on_step)
        assert mlflow_runs.end_run(run.uri, run.run_id, "FINISHED", folder=folder.path) is None
    assert waited[:5] == [False, False, True, True, True]
    assert [step for step, _ in history(uri, run.run_id)] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in history(uri, run.run_id, "eval/reward/brightness")] == [0, 3, 6]
    stored = Path(uri.removeprefix("sqlite:///")).parent / "server-artifacts"
    there = sorted(path.read_bytes() for path in stored.rglob("*.mp4"))
    assert there == sorted(path.read_bytes() for path in folder.videos.rglob("*.mp4"))
    assert len(there) == 6
    assert MlflowClient(tracking_uri=uri).get_run(run.run_id).info.status == "FINISHED"
