"""``clusters/local.yaml`` for real: two machines (namespaces with a network, processes and a sshd of their own) and a client.

They share this machine's disk, processors and Python environment, so the file's installation finds ``vader-ray`` there and
does nothing. All of it ends with one process, which the kernel clears up after.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import which

import psutil
import pytest
from mlflow import MlflowClient

from tests.recipe import write_tiny
from tests.test_clusters import filled
from vader_ray.orchestration.cluster_files import check_cluster_file

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NAMESPACES = ("unshare", "--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc")
MACHINES = r"""
set -e
become() {  # root's home is $1/home, and /tmp its own but for what tests write and run
  mkdir -p $1/home $1/root/tmp
  sed "s|^root:.*|root:x:0:0:root:$1/home:/bin/bash|" /etc/passwd > $1/passwd
  mount --bind $1/passwd /etc/passwd
  for shared in $SHARED; do
    mkdir -p $1/root$shared
    mount --bind $shared $1/root$shared
  done
  mount --rbind $1/root/tmp /tmp
}
export -f become
mount -t tmpfs none /run
mkdir /run/sshd
ip link set lo up
ip link add name switch type bridge
ip address add 10.77.0.254/24 dev switch
ip link set switch up
for n in 1 2; do
  $NAMESPACES bash -c "set -e
    become $HERE/$n
    ip link set lo up
    until ip link show eth0 > /dev/null 2>&1; do sleep 0.05; done
    ip address add 10.77.0.$n/24 dev eth0
    ip link set eth0 up
    ip route add default via 10.77.0.254
    exec $(command -v sshd) -D -e -f $HERE/sshd_config" &
  until machine=$(pgrep --parent $!); do sleep 0.05; done
  ip link add name cable$n type veth peer name eth0 netns $machine
  ip link set cable$n master switch up
done
become $HERE/client
touch $HERE/ready
cat  # until the test has ended, however it ends
"""
SSHD = """
HostKey {here}/host_key
AuthorizedKeysFile {here}/client/home/.ssh/id_ed25519.pub
PermitRootLogin prohibit-password
StrictModes no
PidFile none
"""
PATH = f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"
MACHINE = f"export PATH={PATH} HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 RAY_worker_niceness=0\n"

Client = Callable[[str], str]


def _lacking() -> str:
    """Why there cannot be machines here; empty when there can."""
    if os.geteuid() != 0:
        return "only root makes machines of namespaces"
    if missing := [name for name in ("ip", "sshd", "ssh", "rsync", "curl", "nsenter", "pgrep") if which(name, path=PATH) is None]:
        return f"{', '.join(missing)} not installed (apt-get install openssh-server rsync iproute2 curl procps)"
    tried = subprocess.run(
        [*NAMESPACES, "ip", "link", "add", "name", "switch", "type", "bridge"], capture_output=True, text=True, check=False
    )
    return f"the kernel forbids namespaces: {tried.stderr.strip()}" if tried.returncode else ""


@pytest.fixture
def machines(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[psutil.Process]:
    """The process that holds 10.77.0.1, 10.77.0.2 and the client's side of their network."""
    if reason := _lacking():
        pytest.skip(reason)
    for name in ("1", "2", "client"):
        (tmp_path / name / "home" / ".ssh").mkdir(parents=True)
        (tmp_path / name / "home" / ".bashrc").write_text(MACHINE)
    for key in ("host_key", "client/home/.ssh/id_ed25519"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / key)], check=True)
    (tmp_path / "sshd_config").write_text(SSHD.format(here=tmp_path))
    used = (tmp_path_factory.getbasetemp(), Path(sys.prefix), Path(__file__).parent.parent)
    words = {
        "PATH": PATH,
        "HERE": str(tmp_path),
        "SHARED": " ".join(str(part) for part in used if part.is_relative_to("/tmp")),
        "NAMESPACES": " ".join(NAMESPACES),
    }
    with (tmp_path / "machines.log").open("w") as log:
        process = subprocess.Popen(
            [*NAMESPACES, "bash", "-c", MACHINES], env=words, stdin=subprocess.PIPE, stdout=log, stderr=log
        )
    try:
        until = time.monotonic() + 20
        while not (tmp_path / "ready").exists():
            assert process.poll() is None, (tmp_path / "machines.log").read_text()
            assert time.monotonic() < until, (tmp_path / "machines.log").read_text()
            time.sleep(0.1)
        yield psutil.Process(process.pid).children()[0]
    finally:
        process.communicate(timeout=30)  # the kernel ends every process of the namespaces, and takes networks and mounts down


@pytest.fixture
def client(machines: psutil.Process, tmp_path: Path) -> Client:
    """Runs a command in the repository as the user who starts the cluster; its output."""
    home = tmp_path / "client" / "home"
    environment = {"HOME": str(home), "PATH": PATH, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token"}
    environment |= {"RAY_UP_enable_autoscaler_v2": "0"}

    def run(command: str) -> str:
        there = f"cd {Path(__file__).parent.parent}; {command}"
        inside = ["nsenter", "--target", str(machines.pid), "--net", "--pid", "--mount", "bash", "-c", there]
        done = subprocess.run(inside, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout[-6000:]}"
        return done.stdout

    return run


def _running(machines: psutil.Process) -> list[str]:
    """What runs on the two machines beside sshd."""
    servers = [part for part in machines.children() if part.name() == "unshare"]
    assert len(servers) == 2
    return [" ".join(part.cmdline()) for server in servers for part in server.children(recursive=True) if part.name() != "sshd"]


def test_a_sweep_on_two_machines_from_up_to_down(
    machines: psutil.Process, client: Client, tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    recipe = write_tiny(tmp_path, tiny_pipeline_folder, num_steps=4, evaluation={"every": 2, "num_videos": 2})
    names = {"<HEAD_IP>": "10.77.0.1", "<WORKER_IP>": "10.77.0.2", "<SSH_USER>": "root", "<SHARED_FOLDER>": f"{tmp_path}/shared"}
    file = filled("local.yaml", tmp_path, **names, **{"ray start": "ray start --num-cpus=1"})  # they share two processors
    check_cluster_file(file)
    client("ray get-auth-token --generate")
    client(f"ray up --yes {file}")
    status = client(f"ray exec {file} 'until ray status | grep --quiet /2.0.CPU; do sleep 1; done; ray status'")
    assert "0.0/2.0 CPU" in status
    here = "http://127.0.0.1:8265"
    client(f"(ray dashboard {file} > /dev/null 2>&1 &); until curl --silent --output /dev/null {here}; do sleep 0.5; done")
    sweep = f"python sweeps/hps_k_sweep.py --recipe {recipe} --num-trials 2 --max-concurrent 2"
    assert "succeeded" in client(f"ray job submit --address {here} --working-dir . -- {sweep}")
    (folder,) = (tmp_path / "shared" / "runs").iterdir()
    (told,) = (folder / "tune").glob("experiment_state-*.json")
    assert sorted(re.findall(r"node_ip\W+([\d.]+)", told.read_text())) == ["10.77.0.1", "10.77.0.2"]  # a trial on each
    client("pkill --full [r]ay.dashboard; pkill --full '[s]sh .*8265'")
    client(f"ray exec {file} 'pkill --full [m]lflow.server'")
    client(f"ray down --yes {file}")
    client("ssh -i ~/.ssh/id_ed25519 -o StrictHostKeyChecking=no root@10.77.0.2 'bash -ic \"ray stop\"'")
    until = time.monotonic() + 30
    while left := _running(machines):
        assert time.monotonic() < until, left
        time.sleep(1)
    tracked = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/1/home/mlflow/mlflow.db")
    runs = {run.info.run_name: run for run in tracked.search_runs([item.experiment_id for item in tracked.search_experiments()])}
    assert runs.keys() == {folder.name, "K=1", "K=2"}
    for name in ("K=1", "K=2"):
        run = runs[name]
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == runs[folder.name].info.run_id
        steps = [point.step for point in tracked.get_metric_history(run.info.run_id, "cost/reward_queries")]
        assert sorted(steps) == [0, 1, 2, 3, 4]
        artifacts = tmp_path / "shared" / "mlflow" / run.info.experiment_id / run.info.run_id / "artifacts"
        assert (artifacts / "adapter" / "adapter_model.safetensors").read_bytes() == (
            folder / name / "adapter" / "adapter_model.safetensors"
        ).read_bytes()
