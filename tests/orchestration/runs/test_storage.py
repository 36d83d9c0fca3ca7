"""Run folders in S3 (moto on loopback) and in a shared folder: copies, resume elsewhere, queries once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from pyarrow import fs

from tests.helpers.mock_aws import mock_aws
from tests.helpers.paths import REPOSITORY
from tests.helpers.recipe import tiny_config, write_tiny
from tests.helpers.runs import CLI, adapter_files, kill_driver, record, start, tracked_step
from tests.helpers.waiting import wait_until
from vader_ray.errors import UserError
from vader_ray.orchestration.reporting.html_report import write_report
from vader_ray.orchestration.reporting.past_runs import find_runs
from vader_ray.orchestration.runs.run_dir import KEPT_BY_RAY, RunDir, claim_run_dir, working_copy, write_json
from vader_ray.orchestration.runs.storage import (
    Mirror,
    delete_from_run,
    join,
    normalised,
    resolve,
    subfolders,
)
from vader_ray.orchestration.tracking.server import check_server


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A bucket of the mock."""
    pytest.importorskip("moto.server", reason="moto is not installed (pip install 'moto[server,ec2,iam,s3]')")
    boto3 = pytest.importorskip("boto3")
    with mock_aws() as environment:
        boto3.client("s3").create_bucket(
            Bucket="lab", CreateBucketConfiguration={"LocationConstraint": environment["AWS_REGION"]}
        )
        yield "s3://lab"


@pytest.fixture(params=["s3", "shared folder"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place of each kind."""
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/{uuid4().hex}"
    return str(tmp_path / "shared")


def _tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def _fill(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_a_copy_follows_changes_and_deletions(place: str, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    ours, theirs = Mirror(here, place), Mirror(there, place)
    ours.pull()
    assert not here.exists()
    _fill(here, {"run.json": "{}", "a": "1", "b/c": "2", "b/d": ""})
    ours.push()
    theirs.pull()
    assert _tree(there) == {"run.json": "{}", "a": "1", "b/c": "2", "b/d": ""}
    (there / "b" / "c").unlink()
    _fill(there, {"a": "one", "K=2,lr=0.001/x y.json": "3"})
    theirs.push()
    ours.pull()
    assert _tree(here) == {"run.json": "{}", "a": "one", "b/d": "", "K=2,lr=0.001/x y.json": "3"}


def test_what_has_not_changed_is_not_copied_again(place: str, tmp_path: Path) -> None:
    _fill(tmp_path / "here", {"a": "1"})
    mirror = Mirror(tmp_path / "here", place)
    mirror.push()
    system, root = resolve(place)
    system.delete_file(f"{root}/a")
    mirror.push()
    assert system.get_file_info(f"{root}/a").type == fs.FileType.NotFound


def test_unfinished_files_and_rays_folders_stay(place: str, tmp_path: Path) -> None:
    _fill(
        tmp_path / "here",
        {
            "a": "1",
            "b.unfinished": "",
            "c.unfinished/d": "",
            "checkpoints/f": "",
            "g/tune/h": "",
        },
    )
    Mirror(tmp_path / "here", place, skip=KEPT_BY_RAY).push()
    Mirror(tmp_path / "there", place).pull()
    assert _tree(tmp_path / "there") == {"a": "1"}
    assert (tmp_path / "here" / "checkpoints" / "f").exists()


def test_folders_are_listed_and_deleted_in_runs_alone(place: str, tmp_path: Path) -> None:
    _fill(tmp_path / "here", {"run/run.json": "{}", "run/tune/a": "1", "other/tune/b": "2"})
    Mirror(tmp_path / "here", place).push()
    assert subfolders(place) == ["other", "run"]
    delete_from_run(join(place, "run"), "tune")
    delete_from_run(join(place, "run"), "nothing")
    delete_from_run(join(place, "other"), "tune")
    Mirror(tmp_path / "there", place).pull()
    assert _tree(tmp_path / "there") == {"run/run.json": "{}", "other/tune/b": "2"}


def test_options_of_a_uri_stay_at_its_end(monkeypatch: pytest.MonkeyPatch, s3: str, tmp_path: Path) -> None:
    endpoint = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    uri = join(f"{s3}/options?scheme=http&endpoint_override={endpoint}", "run")
    assert uri.startswith(f"{s3}/options/run?scheme=http")
    _fill(tmp_path / "here", {"a": "1"})
    Mirror(tmp_path / "here", uri).push()
    Mirror(tmp_path / "there", uri).pull()
    assert _tree(tmp_path / "there") == {"a": "1"}


@pytest.mark.parametrize("storage", ["s3://key:canary@lab/runs", "s3://lab/runs?secret_key=canary"])
def test_a_storage_with_a_password_is_refused(storage: str) -> None:
    with pytest.raises(UserError, match=r"has a password or key, .* set AWS_ACCESS_KEY_ID") as raised:
        normalised(storage)
    assert "canary" not in str(raised.value)


def test_an_unknown_storage_is_refused() -> None:
    with pytest.raises(UserError, match=r"--storage ftp://host/runs: .*; give s3://BUCKET/PREFIX"):
        normalised("ftp://host/runs")


def test_a_run_is_found_by_its_copy_alone(place: str, tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    with claim_run_dir(config, tmp_path / "one", None, resume=False, storage=place) as folder:
        write_json(folder.metadata, {"identity": config.fingerprint(), "storage": folder.storage})
        folder.push()
    with claim_run_dir(config, tmp_path / "two", None, resume=True, storage=place) as elsewhere:
        assert elsewhere.name == folder.name
        assert elsewhere.read_metadata() == folder.read_metadata()
    with (
        pytest.raises(UserError, match=r"keeps its checkpoints in .*with --storage"),
        claim_run_dir(config, tmp_path / "two", folder.name, resume=True),
    ):
        pass
    with (
        pytest.raises(UserError, match="there is no run 'other' in"),
        claim_run_dir(config, tmp_path / "two", "other", resume=True, storage=place),
    ):
        pass
    assert not (tmp_path / "two" / "other").exists()


def test_a_worker_without_the_drivers_disk_works_on_the_copy(place: str, tmp_path: Path) -> None:
    driver = RunDir(tmp_path / "run", Mirror(tmp_path / "run", place))
    _fill(driver.path, {"run.json": '{"identity": {}}'})
    driver.push()
    with working_copy("/of/another/machine/run", place) as copy:
        assert copy.path != driver.path
        assert copy.read_metadata() == {"identity": {}}
        assert copy.at_home(copy.adapter) == Path("/of/another/machine/run/adapter")
        _fill(copy.path, {"queries/q": "1"})
        copy.push()
    driver.pull()
    assert (driver.queries / "q").read_text() == "1"
    with (
        pytest.raises(UserError, match="is not on this machine; give --storage"),
        working_copy("/of/another/machine/run", None),
    ):
        pass


@pytest.mark.slow
def test_a_run_in_s3_is_reported_where_nothing_is_left_of_it(
    tiny_pipeline_folder: Path, tmp_path: Path, s3: str
) -> None:
    uri, evaluation = f"sqlite:///{tmp_path}/mlflow.db", {"every": 2, "num_videos": 2, "num_shown": 2}
    check_server(uri)
    MlflowClient(tracking_uri=uri).create_experiment("in s3", artifact_location=f"{s3}/mlflow")
    tracking = {"uri": uri, "experiment": "in s3", "system_metrics": False}
    config = tiny_config(tiny_pipeline_folder, num_steps=2, evaluation=evaluation, tracking=tracking)
    record(config, tmp_path, "mine", f"{s3}/reported")
    shutil.rmtree(tmp_path / "runs")
    page = write_report([f"{s3}/reported/mine"], tmp_path / "report.html", uri).read_text()
    (run,) = find_runs(uri, ["mine"])
    assert run.run_id in page
    videos = run.videos(2, 2)
    assert all(f'"data:video/mp4;base64,{b64encode(video.mp4).decode()}"' in page for video in videos)
    assert len(videos) == 2
    assert all(prompt in page for prompt in config.prompts.validation)  # of the recipe among the artifacts


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_in_s3_goes_on_where_nothing_is_left_of_it(
    tiny_pipeline_folder: Path, tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, storage = write_tiny(tmp_path, tiny_pipeline_folder, num_steps=8), f"{s3}/runs"
    command, log, run = (
        [CLI, "train", str(recipe), "--run-name"],
        tmp_path / "log",
        tmp_path / "runs" / "mine",
    )
    stored = [*command, "mine", "--storage", storage]
    process = start(stored, tmp_path, log)
    wait_until(lambda: subfolders(f"{storage}/mine/checkpoints"), process=process, explain=log.read_text)
    later = tracked_step(tmp_path / "mlflow.db", run) + 1
    wait_until(
        lambda: tracked_step(tmp_path / "mlflow.db", run) >= later, process=process, explain=log.read_text
    )
    kill_driver(process)
    shutil.rmtree(tmp_path / "runs")
    assert start([*stored, "--resume"], tmp_path, log).wait(timeout=400) == 0, log.read_text()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    record(tiny_config(tiny_pipeline_folder, num_steps=8), tmp_path, "straight")
    assert adapter_files(run) == adapter_files(tmp_path / "runs" / "straight")
    Mirror(tmp_path / "copy", f"{storage}/mine", skip=KEPT_BY_RAY).pull()
    assert _tree_of_bytes(tmp_path / "copy") == _tree_of_bytes(run)
    system, root = resolve(f"{storage}/mine/queries")
    queries = pq.read_table(root, filesystem=system)
    assert sorted(queries["video"].to_pylist()) == list(range(32))


def _tree_of_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.chaos
def test_a_sweep_in_s3_goes_on_where_nothing_is_left_of_it(
    tiny_pipeline_folder: Path, tmp_path: Path, s3: str
) -> None:
    evaluation = {"every": 2, "num_videos": 2}
    recipe = write_tiny(
        tmp_path, tiny_pipeline_folder, num_steps=4, checkpoint={"every": 1}, evaluation=evaluation
    )
    script, storage = str(REPOSITORY / "sweeps" / "hps_k_sweep.py"), f"{s3}/sweeps"
    flags = ("--recipe", str(recipe), "--num-trials", "2", "--max-concurrent", "1", "--storage", storage)

    log = tmp_path / "log"

    def sweep(*more: str) -> subprocess.Popen[str]:
        return start([sys.executable, script, *flags, *more], tmp_path, log)

    def summaries() -> list[str]:
        system, root = resolve(storage)
        found = system.get_file_info(fs.FileSelector(root, allow_not_found=True, recursive=True))
        return [info.path for info in found if info.base_name == "summary.json"]

    process = sweep()
    wait_until(lambda: len(summaries()) == 1, process=process, explain=log.read_text)
    kill_driver(process)
    shutil.rmtree(tmp_path / "runs")
    assert sweep("--resume").wait(timeout=400) == 0, log.read_text()
    (folder,) = (tmp_path / "runs").iterdir()
    for name in ("K=1", "K=2"):
        summary = json.loads((folder / name / "summary.json").read_text())
        assert (summary["status"], summary["steps"], summary["reward_queries"]) == ("completed", 4, 16)
        assert summary["adapter"] == str(folder / name / "adapter")
        assert all(Path(path).exists() for path in summary["videos"])
        system, root = resolve(f"{storage}/{folder.name}/{name}/queries")
        assert sorted(pq.read_table(root, filesystem=system)["video"].to_pylist()) == list(range(16))
    assert [row["status"] for row in pq.read_table(folder / "trials.parquet").to_pylist()] == [
        "completed"
    ] * 2
