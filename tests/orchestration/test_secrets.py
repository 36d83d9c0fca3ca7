"""The password of an MLflow server is in the memory of processes, and nowhere else."""

from __future__ import annotations

import base64
import json
import shutil
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from ray import cloudpickle, tune
from typer.testing import CliRunner

from tests.helpers.mlflow_server import behind_password, server
from tests.helpers.network import free_port
from tests.helpers.recipe import tiny_config, write_tiny
from tests.helpers.runs import CLI, record, start
from vader_ray.cli import app
from vader_ray.config import load, override
from vader_ray.errors import UserError
from vader_ray.orchestration.reward_service import pool
from vader_ray.orchestration.sweeps.definition import SweepDefinition
from vader_ray.orchestration.sweeps.driver import run_sweep
from vader_ray.orchestration.sweeps.search import QueuedSearcher
from vader_ray.orchestration.tracking import mlflow_runs
from vader_ray.orchestration.tracking.sender import Sender
from vader_ray.uris import Uri

USER, CANARY = "researcher", "canary-3f8a1c"
FORMS = (CANARY.encode(), base64.b64encode(f"{USER}:{CANARY}".encode()))
FAST = {"num_steps": 2, "evaluation": {"every": 2, "num_videos": 2, "num_shown": 1}}


@dataclass(frozen=True)
class Machine:
    """Folders in which everything is that a command leaves, and an MLflow server behind a password."""

    work: Path
    ray: Path
    server: Path
    uri: str

    def files(self) -> Iterator[Path]:
        for folder in (self.work, self.ray, self.server):
            yield from (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())

    def leaks(self) -> list[str]:
        return [str(path) for path in self.files() if any(form in path.read_bytes() for form in FORMS)]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    root = tmp_path_factory.mktemp("machine")
    for name in ("work", "server"):
        (root / name).mkdir()
    ray_folder = Path(tempfile.mkdtemp(prefix="vr", dir="/tmp"))  # the paths of Ray's sockets must be short
    with (
        pytest.MonkeyPatch.context() as patch,
        server(f"sqlite:///{root}/server/mlflow.db", free_port()) as address,
        behind_password(address, USER, CANARY) as uri,
    ):
        patch.setenv("RAY_TMPDIR", str(ray_folder))
        patch.chdir(root / "work")
        yield Machine(root / "work", ray_folder, root / "server", uri)
    shutil.rmtree(ray_folder)


@contextmanager
def _watch_arguments(process: subprocess.Popen[str]) -> Iterator[set[str]]:
    """Collect the command lines of a process and all below it, as every user of the machine sees them."""
    seen, ended = set[str](), threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            try:
                root = psutil.Process(process.pid)
                seen.update(" ".join(each.cmdline()) for each in (root, *root.children(recursive=True)))
            except psutil.NoSuchProcess:
                continue

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def _train(machine: Machine, *arguments: str) -> str:
    """Run the command; return its output. No argument of its processes has the password."""
    log = machine.work / "output.log"
    process = start([CLI, "train", *arguments], machine.work, log)
    with _watch_arguments(process) as seen:
        process.wait(timeout=400)
    assert any("raylet" in line for line in seen) or process.returncode
    assert [line for line in seen if CANARY in line] == []
    return log.read_text()


@pytest.mark.ray
@pytest.mark.slow
def test_no_file_of_a_run_has_the_password_and_the_run_is_continued_with_it(
    machine: Machine, tiny_pipeline_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_tiny(machine.work.parent, tiny_pipeline_folder, **FAST, tracking={"uri": machine.uri})
    output = _train(machine, str(recipe), "--run-name", "mine")
    run = machine.work / "runs" / "mine"
    assert json.loads((run / "summary.json").read_text())["status"] == "completed", output
    assert f"http://{machine.uri.partition('@')[2]}/#/experiments/" in output
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in run.rglob("*") if path.is_file()}
    assert {path.name for path, mode in modes.items() if mode != 0o666 & ~_umask()} == set()

    again = (str(run / "recipe.yaml"), "--resume", "--run-name", "mine", "num_steps=4")
    refused = CliRunner().invoke(app, ["train", *again])
    assert refused.exit_code == 2, refused.output
    assert "lacks its password, which no file of a run contains; set MLFLOW_TRACKING_URI" in refused.stderr
    monkeypatch.setenv("MLFLOW_TRACKING_URI", machine.uri)
    known = json.loads((run / "run.json").read_text())
    config = load(str(run / "recipe.yaml"))
    assert known["tracking_uri"] == str(config.tracking.uri) == f"http://***@{machine.uri.partition('@')[2]}"
    continued = mlflow_runs.start_run(config, "mine", "", resume_run_id=known["mlflow_run_id"])
    assert continued == (machine.uri, known["experiment_id"], known["mlflow_run_id"])
    assert CliRunner().invoke(app, ["report", "mine"]).exit_code == 0
    assert "http://***@127.0.0.1" in (machine.work / "report.html").read_text()
    assert machine.leaks() == []
    assert any("gcs_server" in path.name for path in machine.files())
    assert any(path.name == "mlflow.db" for path in machine.files())


def _umask() -> int:
    probe = Path("umask")
    probe.touch()
    return 0o666 & ~stat.S_IMODE(probe.stat().st_mode)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.chaos
def test_no_file_of_a_sweep_has_the_password(
    machine: Machine, tiny_pipeline_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_config(tiny_pipeline_folder, **FAST, tracking={"uri": machine.uri, "system_metrics": True})
    space = {"optimizer.learning_rate": tune.loguniform(1e-3, 1e-1)}
    sweep = SweepDefinition("mine", "", "", (), space, lambda values, _: values, search="random")
    result = run_sweep(sweep, recipe, num_trials=1)
    assert [trial.status for trial in result.trials] == ["completed"]
    assert machine.leaks() == []
    captured = capfd.readouterr()
    assert CANARY not in captured.out + captured.err
    assert (result.path / "report.html").exists()
    assert (result.path / "tune" / "tuner.pkl").exists()


def test_results_that_wait_for_a_server_have_no_password(tmp_path: Path) -> None:
    said = list[str]()
    uri = f"http://{USER}:{CANARY}@127.0.0.1:{free_port()}"
    sender = Sender(uri, "1", tmp_path, on_message=said.append)
    sender.post({"kind": "tag", "name": "a", "value": "b"})
    said.append(sender.undelivered() or "")
    assert [CANARY in text for text in said] == [False, False]
    assert all("MLflow at http://***@127.0.0.1:" in text for text in said)
    assert CANARY not in (tmp_path / "undelivered.jsonl").read_text()


def test_the_searcher_that_tune_pickles_has_no_trials() -> None:
    uri = Uri(f"http://{USER}:{CANARY}@host")
    searcher = QueuedSearcher(lambda: None, lambda name, score: print(uri))
    assert CANARY.encode() in cloudpickle.dumps(lambda: uri)
    assert CANARY.encode() not in cloudpickle.dumps(searcher)


@pytest.mark.parametrize("command", ["train", "sync", "report"])
def test_no_message_about_an_unreachable_server_has_the_password(
    tiny_pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{USER}:{CANARY}@127.0.0.1:{free_port()}")
    recipe = write_tiny(tmp_path, tiny_pipeline_folder, **FAST)
    arguments = {"train": [str(recipe)], "report": ["mine"], "sync": ["runs/mine"]}[command]
    if command == "sync":
        Path("runs/mine").mkdir(parents=True)
        header = {"uri": "http://***@127.0.0.1:1", "run_id": "1"}
        end = {"kind": "end", "status": "FINISHED", "time_ms": 1}
        Path("runs/mine/undelivered.jsonl").write_text(f"{json.dumps(header)}\n{json.dumps(end)}\n")
    result = CliRunner().invoke(app, [command, *arguments])
    assert result.exit_code == 2
    assert "http://***@127.0.0.1:" in result.stderr
    everything = result.output + "".join(path.read_text() for path in Path().rglob("*") if path.is_file())
    assert CANARY not in everything


@pytest.mark.slow
def test_no_file_of_a_run_has_the_variables_of_an_actor_and_it_is_continued_with_the_environments(
    tiny_pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {"env_vars": {"HF_TOKEN": CANARY}, "pip": [f"https://{USER}:{CANARY}@host/package.whl"]}
    placed = {"reward": "brightness", "placement": {"actor": "a", "runtime_env": environment}}
    config = tiny_config(tiny_pipeline_folder, **FAST, rewards=[placed])
    record(config, tmp_path, "mine")
    written = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"recipe.yaml", "run.json", "mlflow.db"} <= {path.name for path in written}
    assert [path for path, content in written.items() if CANARY.encode() in content] == []
    assert CANARY not in repr(config.fingerprint())

    again = load(str(tmp_path / "runs" / "mine" / "recipe.yaml"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with (
        pytest.raises(UserError, match=r"env_vars\.HF_TOKEN has no value.*set the environment variable"),
        pool.start_pools(again),
    ):
        pass
    changed = override(config, ["num_steps=4"]).rewards[0].placement
    assert changed is not None
    assert changed.runtime_env == environment


@pytest.mark.parametrize("env_vars", [{"HF_TOKEN": [CANARY]}, [CANARY], CANARY])
def test_no_message_about_wrong_variables_of_an_actor_has_their_values(env_vars: object) -> None:
    placement = {"actor": "a", "runtime_env": {"env_vars": env_vars}}
    with pytest.raises(UserError, match="runtime_env: env_vars") as refusal:
        load("shapes_hps", {"rewards.0.placement": placement})
    assert CANARY not in str(refusal.value)
