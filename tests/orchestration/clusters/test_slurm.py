"""``clusters/slurm.sbatch`` in a real allocation: Slurm's controller and two nodes on machines made of
namespaces."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.helpers.cluster_files import filled
from tests.helpers.machines import ADDRESSES, CLIENT, Machines, lacking, machines
from tests.helpers.recipe import write_tiny
from tests.helpers.waiting import wait_until
from vader_ray.orchestration.clusters.cluster_files import check_cluster_file
from vader_ray.orchestration.runs.query_log import read_queries

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# The nodes claim what the file asks for. There is no GPU behind these, and nothing in Ray counts on Slurm's
# word. The spool's path is short: sockets lie in it.
CONFIGURATION = """
ClusterName=tests
SlurmctldHost=client({client})
AuthType=auth/none
CredType=cred/none
SlurmUser=root
SlurmdUser=root
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd-%n.pid
StateSaveLocation=/run/controller
SlurmdSpoolDir=/run/spool-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
KillWait=5
GresTypes=gpu
NodeName=machine1 NodeAddr={nodes[0]} CPUs=32 RealMemory=1000 Gres=gpu:4
NodeName=machine2 NodeAddr={nodes[1]} CPUs=32 RealMemory=1000 Gres=gpu:4
PartitionName=gpu Nodes=machine[1-2] State=UP
"""
NUM_STEPS = 5
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
}
ENVIRONMENT |= {
    "RAY_gcs_rpc_server_reconnect_timeout_s": "30"
}  # so long the second node looks for a head that has ended


@pytest.fixture
def cluster(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """Two nodes, and a client on which the controller runs."""
    pytest.importorskip("flask_wtf", reason="the MLflow server needs pip install 'mlflow[auth]'")
    if reason := lacking(
        ("slurmctld", "slurmd", "sbatch", "srun", "scontrol"), "slurmctld slurmd slurm-client"
    ):
        pytest.skip(reason)
    (tmp_path / "slurm.conf").write_text(CONFIGURATION.format(client=CLIENT, nodes=ADDRESSES))
    (tmp_path / "gres.conf").write_text(f"Name=gpu File={tmp_path}/gpu[0-3]\n")
    for n in range(4):
        (tmp_path / f"gpu{n}").touch()
    service = "slurmd -D -N machine$n -f $HERE/slurm.conf"
    with machines(tmp_path, service, [tmp_path_factory.getbasetemp()]) as made:
        made.run("mkdir /run/controller && slurmctld", _environment(tmp_path))
        made.run(
            "timeout 60 bash -c 'until sinfo --noheader --format %T%D | grep idle2; do sleep 1; done'",
            _environment(tmp_path),
        )
        yield made


def _environment(folder: Path) -> dict[str, str]:
    return ENVIRONMENT | {"SLURM_CONF": str(folder / "slurm.conf")}


@pytest.mark.chaos
def test_a_job_that_is_put_back_into_the_queue_goes_on_with_its_run(
    cluster: Machines, tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    recipe = write_tiny(
        tmp_path,
        tiny_pipeline_folder,
        num_steps=NUM_STEPS,
        videos_per_step=3,
        evaluation={"every": NUM_STEPS, "num_videos": 2},
        checkpoint={"every": 1},
    )
    # where a node has two processors, three workers are on both
    options = f"--workers 3 --run-name mine --runs-dir {tmp_path}/runs runtime.use_gpu=false"
    train = f"vader-ray train {recipe} {options}"
    job = _submit(cluster, tmp_path, train)
    checkpoints = tmp_path / "shared" / "runs" / "mine" / "checkpoints"
    job.wait(lambda: len(list(checkpoints.glob("checkpoint_*/state.json"))) > 0)
    job.client(f"scontrol requeue {job.number}")
    job.wait(lambda: job.state() == "PENDING")
    job.client(f"scontrol update job {job.number} StartTime=now")  # Slurm lets it wait for two minutes
    job.wait(lambda: job.state() == "COMPLETED")
    summary = json.loads((tmp_path / "runs" / "mine" / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("completed", NUM_STEPS)
    assert sorted(read_queries(tmp_path / "runs" / "mine" / "queries")["video"].to_pylist()) == list(
        range(NUM_STEPS * 3)
    )
    tracked = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/shared/mlflow/mlflow.db")
    (run,) = tracked.search_runs([item.experiment_id for item in tracked.search_experiments()])
    assert run.info.status == "FINISHED"
    steps = [point.step for point in tracked.get_metric_history(run.info.run_id, "cost/reward_queries")]
    assert sorted(steps) == list(range(NUM_STEPS + 1))
    wait_until(
        lambda: not cluster.running("slurmd", "slurmstepd"),
        explain=lambda: cluster.running("slurmd", "slurmstepd"),
    )


def test_a_job_whose_tracking_server_cannot_be_had_says_so_and_ends(
    cluster: Machines, tmp_path: Path
) -> None:
    (tmp_path / "shared" / "mlflow").mkdir(parents=True)
    (tmp_path / "shared" / "mlflow" / "mlflow.db").write_text("no database")
    with open(tmp_path / "shared" / "mlflow" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        job = _submit(cluster, tmp_path, "vader-ray --help")
        job.wait(lambda: job.state() == "FAILED")
        assert "the MLflow server of another job uses" in job.said()
    job = _submit(cluster, tmp_path, "vader-ray --help")
    job.wait(lambda: job.state() == "FAILED")
    (log,) = (tmp_path / "shared" / "mlflow").glob("server-*.log")
    assert f"the MLflow server has ended; see {log}" in job.said()
    assert "not a database" in log.read_text()


@dataclass
class _Job:
    cluster: Machines
    folder: Path
    number: str

    def client(self, command: str) -> str:
        return self.cluster.run(command, _environment(self.folder))

    def state(self) -> str:
        said = self.client(f"scontrol show job {self.number} | grep --only-matching 'JobState=[A-Z]*'")
        return said.strip().removeprefix("JobState=")

    def said(self) -> str:
        log = self.folder / "job.log"
        return log.read_text() if log.exists() else f"nothing; the job is {self.state()}"

    def wait(self, condition: Callable[[], bool]) -> None:
        def holds() -> bool:
            state = self.state()
            if condition():
                return True
            assert state not in ("FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"), self.said()
            return False

        wait_until(holds, explain=self.said)


def _submit(cluster: Machines, folder: Path, command: str) -> _Job:
    """Fill the file in as its comments say, check it and give it to Slurm."""
    shared = folder / "shared"
    shared.mkdir(exist_ok=True)
    cluster.run(f"ln -sfn $(dirname $(dirname $(command -v vader-ray))) {shared}/venv", {})
    file = filled("slurm.sbatch", folder, **{"<PARTITION>": "gpu", "<SHARED_FOLDER>": str(shared)})
    check_cluster_file(file)
    number = cluster.run(
        f"sbatch --parsable --output {folder}/job.log {file} {command}", _environment(folder)
    ).strip()
    return _Job(cluster, folder, number)
