"""The folder of a run: its name, no deletion of others' files, and one driver at a time."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.helpers.paths import REPOSITORY
from tests.helpers.recipe import tiny_config, write_tiny
from tests.helpers.runs import CLI, start
from tests.helpers.waiting import wait_until
from vader_ray.errors import UserError
from vader_ray.orchestration.runs import run_lock
from vader_ray.orchestration.runs.run_dir import RunDir, claim_run_dir, write_json
from vader_ray.orchestration.runs.storage import LOCK_FILE, Mirror


def _fill(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _claim(tmp_path: Path, name: str | None, *, root: str = "runs", storage: bool = True) -> RunDir:
    """Claim a run, and let it go again."""
    place = str(tmp_path / "shared") if storage else None
    with claim_run_dir(tiny_config(tmp_path), tmp_path / root, name, resume=False, storage=place) as folder:
        return folder


@pytest.mark.parametrize("storage", [True, False])
@pytest.mark.parametrize(
    "name", ["..", ".", "", "/tmp", "a/b", "../x", "-x", ".x", "a b", "ü", "x\n", "x" * 201]
)
def test_a_name_that_is_no_plain_folders_name_is_refused_and_deletes_nothing(
    name: str, storage: bool, tmp_path: Path
) -> None:
    _fill(
        tmp_path,
        {"runs/other/run.json": "1", "shared/other/run.json": "2", "shared/run.json": "{}", "mine": "3"},
    )
    before = _tree(tmp_path)
    with pytest.raises(UserError, match=r"--run-name .* cannot name a run; begin with a letter or a digit"):
        _claim(tmp_path, name, storage=storage)
    assert _tree(tmp_path) == before


def test_names_of_the_recipes_pattern_are_taken(tmp_path: Path) -> None:
    for name in ("a", "K2_lr-0.001.b", "0" * 200):
        assert _claim(tmp_path, name).name == name


@pytest.mark.parametrize("place", ["runs/mine", "shared/mine"])
@pytest.mark.parametrize(
    "files", [{"thesis.txt": "all I have"}, {"adapter/a": "1"}, {"checkpoints/c/a": "1"}]
)
def test_a_folder_with_files_of_others_is_refused_and_keeps_them(
    files: dict[str, str], place: str, tmp_path: Path
) -> None:
    _fill(tmp_path / place, files)
    before = _tree(tmp_path)
    with pytest.raises(UserError, match=rf"{place} has files .* but no run\.json, so it is no run's folder"):
        _claim(tmp_path, "mine")
    assert _tree(tmp_path) == before


def test_a_run_that_did_not_begin_is_begun_again(tmp_path: Path) -> None:
    first = _claim(tmp_path, "mine")  # wrote its recipe; then the tracking server was not there, say
    assert _claim(tmp_path, "mine").path == first.path


@pytest.mark.parametrize("ours", [None, {"mlflow_run_id": "another"}])
def test_a_copy_replaces_no_folder_of_another_run_or_of_none(
    ours: dict[str, str] | None, tmp_path: Path
) -> None:
    _fill(tmp_path / "shared" / "mine", {"run.json": '{"mlflow_run_id": "one"}', "a": "1"})
    _fill(tmp_path / "runs" / "mine", {"b": "2"} | ({} if ours is None else {"run.json": json.dumps(ours)}))
    before = _tree(tmp_path)
    mirror = Mirror(tmp_path / "runs" / "mine", str(tmp_path / "shared" / "mine"))
    with pytest.raises(UserError, match=r"do not belong to one run .*move one of them away"):
        mirror.pull()
    assert _tree(tmp_path) == before


def test_what_is_deleted_here_is_not_deleted_in_the_copy_of_another_run(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    _fill(here, {"run.json": '{"mlflow_run_id": "one"}', "a": "1"})
    mirror = Mirror(here, str(there))
    mirror.push()
    _fill(there, {"run.json": '{"mlflow_run_id": "another"}', "a": "2"})
    (here / "a").unlink()
    with pytest.raises(UserError, match="do not belong to one run"):
        mirror.push()
    assert (there / "a").read_text() == "2"


@pytest.mark.parametrize("root", ["runs", "elsewhere"])
def test_the_second_driver_of_a_run_is_refused_and_writes_nothing(root: str, tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    with claim_run_dir(
        config, tmp_path / "runs", "mine", resume=False, storage=str(tmp_path / "shared")
    ) as folder:
        write_json(folder.metadata, {"identity": config.fingerprint(), "storage": folder.storage})
        folder.push()
        before = _tree(tmp_path)
        with pytest.raises(UserError) as refused:
            _claim(tmp_path, "mine", root=root)
        assert str(refused.value).startswith(
            f"the run 'mine' is in use by process {os.getpid()} on {socket.gethostname()} since "
        )
        assert str(refused.value).endswith("; wait until it has ended, or choose another --run-name")
        assert _tree(tmp_path) == before
        assert not (tmp_path / "elsewhere").exists()
        assert _claim(tmp_path, "other").name == "other"
    assert _claim(tmp_path, "mine", root=root).name == "mine"
    assert not list(tmp_path.rglob(LOCK_FILE))


def test_a_run_whose_learning_rate_has_decayed_is_not_continued(tmp_path: Path) -> None:
    started = tiny_config(tmp_path, num_steps=4, optimizer={"schedule": "cosine"})
    longer = tiny_config(tmp_path, num_steps=6, optimizer={"schedule": "cosine"})
    with claim_run_dir(started, tmp_path / "runs", "mine", resume=False) as folder:
        write_json(folder.metadata, {"identity": started.fingerprint()})
    with (
        pytest.raises(
            UserError,
            match=r"\(optimizer\.schedule_steps\); .*; its learning rate decays until step 4: set "
            "optimizer.schedule_steps=4, with num_steps of at most 4",
        ),
        claim_run_dir(longer, tmp_path / "runs", "mine", resume=True),
    ):
        pass
    shorter = tiny_config(tmp_path, num_steps=2, optimizer={"schedule": "cosine", "schedule_steps": 4})
    with claim_run_dir(shorter, tmp_path / "runs", "mine", resume=True) as folder:
        assert folder.name == "mine"


def test_without_a_storage_the_second_driver_is_refused_too(tmp_path: Path) -> None:
    with (
        claim_run_dir(tiny_config(tmp_path), tmp_path / "runs", "mine", resume=False),
        pytest.raises(UserError, match=r"the run 'mine' is in use by process \d+ on "),
    ):
        _claim(tmp_path, "mine", storage=False)


HOLD = """
import sys, time
from pathlib import Path
from tests.helpers.recipe import tiny_config
from vader_ray.orchestration.runs.run_dir import claim_run_dir
root = Path(sys.argv[1])
with claim_run_dir(tiny_config(root), root / "runs", "mine", resume=False, storage=sys.argv[2] or None):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.parametrize("storage", [True, False])
def test_the_lock_of_a_killed_driver_is_free(storage: bool, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path), str(tmp_path / "shared") if storage else ""]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"the run 'mine' is in use by process {driver.pid} on"):
            _claim(tmp_path, "mine", storage=storage)
        driver.kill()
    assert _claim(tmp_path, "mine", storage=storage).name == "mine"


def _lock_of_another_machine(folder: Path, refreshed: int) -> None:
    lock = {
        "id": "theirs",
        "driver": "process 1 on moon since today",
        "machine": "moon",
        "pid": 1,
        "started": 0.0,
    }
    write_json(folder / LOCK_FILE, lock | {"refreshed": refreshed})


def test_a_lock_of_another_machine_holds_while_it_is_refreshed(tmp_path: Path) -> None:
    copy, ended = tmp_path / "shared" / "mine", threading.Event()
    copy.mkdir(parents=True)
    _lock_of_another_machine(copy, 0)

    def refresh() -> None:
        refreshed = 0
        while not ended.wait(0.5):
            refreshed += 1
            _lock_of_another_machine(copy, refreshed)

    with ExitStack() as stack:
        thread = threading.Thread(target=refresh)
        thread.start()
        stack.callback(thread.join)
        stack.callback(ended.set)
        with (
            pytest.raises(UserError, match="the run 'mine' is in use by process 1 on moon since today; wait"),
            run_lock.hold(tmp_path / "runs" / "mine", str(copy), instead="rest", stale_seconds=60),
        ):
            pass
    assert not (tmp_path / "runs").exists()
    assert json.loads((copy / LOCK_FILE).read_text())["id"] == "theirs"


def test_a_lock_of_another_machine_is_free_when_it_is_no_longer_refreshed(tmp_path: Path) -> None:
    copy = tmp_path / "shared" / "mine"
    copy.mkdir(parents=True)
    _lock_of_another_machine(copy, 7)
    with run_lock.hold(tmp_path / "runs" / "mine", str(copy), instead="rest", stale_seconds=3):
        assert json.loads((copy / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert not (copy / LOCK_FILE).exists()


def _statuses(folder: Path) -> list[str]:
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return [run.info.status for run in client.search_runs(experiments)]


@pytest.mark.ray
@pytest.mark.chaos
def test_a_second_train_of_the_same_name_changes_nothing(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    recipe, run, log = (
        write_tiny(tmp_path, tiny_pipeline_folder),
        tmp_path / "runs" / "mine",
        tmp_path / "log",
    )
    command = [CLI, "train", str(recipe), "--run-name", "mine"]
    with start(command, tmp_path, log) as first:
        wait_until((run / "run.json").exists, process=first, explain=log.read_text)
        second = subprocess.run(
            [*command, "--resume"], cwd=tmp_path, capture_output=True, text=True, timeout=240
        )
        assert first.poll() is None, "the first run was over too early for this test"
        assert second.returncode == 2, second.stderr
        assert second.stderr.splitlines() == [
            f"vader-ray: the run 'mine' is in use by process {first.pid} on {socket.gethostname()} since "
            f"{second.stderr.partition(' since ')[2].partition(';')[0]}; "
            "wait until it has ended, or choose another --run-name"
        ]
        assert not (run / "summary.json").exists()
        assert _statuses(tmp_path) == ["RUNNING"]
        assert first.wait(timeout=300) == 0, log.read_text()
    assert json.loads((run / "summary.json").read_text())["status"] == "completed"
    assert _statuses(tmp_path) == ["FINISHED"]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.chaos
def test_a_second_driver_of_a_sweep_changes_nothing(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    recipe, log = write_tiny(tmp_path, tiny_pipeline_folder), tmp_path / "log"
    script = str(REPOSITORY / "sweeps" / "hps_k_sweep.py")
    command = [sys.executable, script, "--recipe", str(recipe), "--num-trials", "2"]
    with start(command, tmp_path, log) as first:
        try:
            wait_until(
                lambda: list(tmp_path.glob("runs/*/K=1/run.json")), process=first, explain=log.read_text
            )
            second = subprocess.run(
                [*command, "--resume"], cwd=tmp_path, capture_output=True, text=True, timeout=240
            )
            assert second.returncode == 2, second.stderr
            assert f"is in use by process {first.pid} on" in second.stderr
            assert second.stderr.endswith("wait until it has ended, or start a new one without --resume\n")
            assert first.poll() is None
            assert set(_statuses(tmp_path)) == {"RUNNING"}
            assert not list(tmp_path.glob("runs/*/summary.json"))
        finally:
            os.killpg(first.pid, signal.SIGKILL)
