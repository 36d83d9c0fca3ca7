"""``clusters/local.yaml`` for real: two machines (namespaces, each with a sshd) and a client, as in
docs/clusters.md.

The file's installation finds ``vader-ray`` there and does nothing, since they share this machine's Python
environment.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.helpers.cluster_files import filled
from tests.helpers.machines import ADDRESSES, PATH, Machines, lacking, machines
from tests.helpers.recipe import write_tiny
from tests.helpers.waiting import wait_until
from vader_ray.orchestration.clusters.cluster_files import check_cluster_file

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.chaos]
NUM_STEPS = 40

SSHD = """
HostKey {here}/host_key
AuthorizedKeysFile {here}/client/home/.ssh/id_ed25519.pub
PermitRootLogin prohibit-password
StrictModes no
PidFile none
"""
SHELL = f"export PATH={PATH} HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 RAY_worker_niceness=0\n"
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_UP_enable_autoscaler_v2": "0"}


@pytest.fixture
def cluster(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """Two machines that the client reaches by ssh."""
    pytest.importorskip("flask_wtf", reason="the MLflow server needs pip install 'mlflow[auth]'")
    if reason := lacking(("sshd", "ssh", "rsync"), "openssh-server rsync"):
        pytest.skip(reason)
    (tmp_path / "client" / "home" / ".ssh").mkdir(parents=True)
    for key in ("host_key", "client/home/.ssh/id_ed25519"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / key)], check=True)
    (tmp_path / "sshd_config").write_text(SSHD.format(here=tmp_path))
    with machines(
        tmp_path, "$(command -v sshd) -D -e -f $HERE/sshd_config", [tmp_path_factory.getbasetemp()]
    ) as made:
        for name in ("machine1", "machine2", "client"):
            (tmp_path / name / "home" / ".bashrc").write_text(SHELL)
        yield made


def test_a_sweep_on_two_machines_from_up_to_down(
    cluster: Machines, tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    def client(command: str) -> str:
        return cluster.run(command, ENVIRONMENT)

    # long enough that the other machine has started a process before the first trial ends
    recipe = write_tiny(
        tmp_path, tiny_pipeline_folder, num_steps=NUM_STEPS, evaluation={"every": NUM_STEPS, "num_videos": 2}
    )
    (tmp_path / "dist").mkdir()
    names = {
        "~/vader_ray: dist": f"~/vader_ray: {tmp_path}/dist",
        "<HEAD_IP>": ADDRESSES[0],
        "<WORKER_IP>": ADDRESSES[1],
        "<SSH_USER>": "root",
        "<SHARED_FOLDER>": f"{tmp_path}/shared",
    }
    file = filled(
        "local.yaml", tmp_path, **names, **{"ray start": "ray start --num-cpus=1"}
    )  # they share two processors
    check_cluster_file(file)
    client("(umask 077; ray get-auth-token --generate)")
    client(f"ray up --yes {file}")
    status = client(
        f"ray exec {file} 'until ray status | grep --quiet /2.0.CPU; do sleep 1; done; ray status'"
    )
    assert "0.0/2.0 CPU" in status
    _assert_closed(client, tmp_path)
    here = "http://127.0.0.1:8265"
    client(
        f"(ray dashboard {file} > /dev/null 2>&1 &); "
        f"until curl --silent --output /dev/null {here}; do sleep 0.5; done"
    )
    sweep = f"python sweeps/hps_k_sweep.py --recipe {recipe} --num-trials 2 --max-concurrent 2"
    said = client(f"ray job submit --address {here} --working-dir . -- {sweep}")
    assert "succeeded" in said
    (job,) = set(re.findall(r"raysubmit_\w+", said))
    assert "best by" in client(f"ray job logs -f --address {here} {job}")
    (folder,) = (tmp_path / "shared" / "runs").iterdir()
    (told,) = (folder / "tune").glob("experiment_state-*.json")
    assert sorted(re.findall(r"node_ip\W+([\d.]+)", told.read_text())) == list(ADDRESSES)  # a trial on each
    client("pkill --full [r]ay.dashboard; pkill --full '[s]sh .*8265'")
    client(f"ray exec {file} 'pkill --full [m]lflow.server'")
    client(f"ray down --yes {file}")
    client("ssh -i ~/.ssh/id_ed25519 -o StrictHostKeyChecking=no root@machine2 'bash -ic \"ray stop\"'")
    wait_until(lambda: not cluster.running("sshd"), explain=lambda: cluster.running("sshd"))
    tracked = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/machine1/home/mlflow/mlflow.db")
    runs = {
        run.info.run_name: run
        for run in tracked.search_runs([item.experiment_id for item in tracked.search_experiments()])
    }
    assert runs.keys() == {folder.name, "K=1", "K=2"}
    for name in ("K=1", "K=2"):
        run = runs[name]
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == runs[folder.name].info.run_id
        steps = [point.step for point in tracked.get_metric_history(run.info.run_id, "cost/reward_queries")]
        assert sorted(steps) == list(range(NUM_STEPS + 1))
        artifacts = tmp_path / "shared" / "mlflow" / run.info.experiment_id / run.info.run_id / "artifacts"
        assert (artifacts / "adapter" / "adapter_model.safetensors").read_bytes() == (
            folder / name / "adapter" / "adapter_model.safetensors"
        ).read_bytes()


def _assert_closed(client: Callable[[str], str], folder: Path) -> None:
    """Without the token MLflow and Ray's jobs give nothing, and other users see neither token nor sockets."""
    experiments = f"http://{ADDRESSES[0]}:5000/api/2.0/mlflow/experiments/search?max_results=1"
    status = "curl --silent --output /dev/null --write-out '%{http_code}'"
    assert client(f"{status} {experiments}") == "401"
    assert client(f"{status} --user admin:wrong {experiments}") == "401"
    assert client(f"{status} --user admin:$(cat ~/.ray/auth_token) {experiments}") == "200"
    assert client(f"{status} --header 'Host: elsewhere.example' {experiments}") == "403"
    for name in ("machine1", "machine2"):
        token = folder / name / "home" / ".ray" / "auth_token"
        private = (token.parent, folder / name / "tmp" / f"ray_{os.getuid()}")
        assert [path.stat().st_mode & 0o077 for path in (token, *private)] == [0, 0, 0]
    assert (folder / "machine1" / "home" / "mlflow" / "users.db").stat().st_mode & 0o077 == 0
