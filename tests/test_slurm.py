"""``clusters/slurm.sbatch`` in a real allocation: Slurm's controller and two nodes on machines made of namespaces."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.machines import ADDRESSES, CLIENT, Machines, lacking, machines
from tests.recipe import write_tiny
from tests.test_clusters import filled
from vader_ray.orchestration.cluster_files import check_cluster_file
from vader_ray.orchestration.queries import read_queries

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# The nodes claim what the file asks for. There is no GPU behind these, and nothing in Ray counts on Slurm's word.
CONFIGURATION = """
ClusterName=tests
SlurmctldHost=client({client})
AuthType=auth/none
CredType=cred/none
SlurmUser=root
SlurmdUser=root
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd-%n.pid
StateSaveLocation={here}/controller
SlurmdSpoolDir={here}/spool-%n
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
NUM_STEPS = 8
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
ENVIRONMENT |= {"RAY_gcs_rpc_server_reconnect_timeout_s": "30"}  # so long the second node looks for a head that has ended


@pytest.fixture
def cluster(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """Two nodes, and a client on which the controller runs."""
    if reason := lacking(("slurmctld", "slurmd", "sbatch", "srun", "scontrol"), "slurmctld slurmd slurm-client"):
        pytest.skip(reason)
    (tmp_path / "slurm.conf").write_text(CONFIGURATION.format(client=CLIENT, here=tmp_path, nodes=ADDRESSES))
    (tmp_path / "gres.conf").write_text(f"Name=gpu File={tmp_path}/gpu[0-3]\n")
    for n in range(4):
        (tmp_path / f"gpu{n}").touch()
    (tmp_path / "controller").mkdir()
    service = "slurmd -D -N machine$n -f $HERE/slurm.conf"
    with machines(tmp_path, service, [tmp_path_factory.getbasetemp()]) as made:
        made.run("slurmctld", _environment(tmp_path))
        made.run(
            "timeout 60 bash -c 'until sinfo --noheader --format %T%D | grep idle2; do sleep 1; done'", _environment(tmp_path)
        )
        yield made


def _environment(folder: Path) -> dict[str, str]:
    return ENVIRONMENT | {"SLURM_CONF": str(folder / "slurm.conf")}


def test_a_job_that_is_put_back_into_the_queue_goes_on_with_its_run(
    cluster: Machines, tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    def client(command: str) -> str:
        return cluster.run(command, _environment(tmp_path))

    def state() -> str:
        return client(f"scontrol show job {job} | grep --only-matching 'JobState=[A-Z]*'").strip().removeprefix("JobState=")

    recipe = write_tiny(
        tmp_path,
        tiny_pipeline_folder,
        num_steps=NUM_STEPS,
        videos_per_step=3,
        evaluation={"every": 4, "num_videos": 2},
        checkpoint={"every": 1},
    )
    shared = tmp_path / "shared"
    shared.mkdir()
    client(f"ln -s $(dirname $(dirname $(command -v vader-ray))) {shared}/venv")
    names = {"<PARTITION>": "gpu", "<SHARED_FOLDER>": str(shared)}
    file = filled("slurm.sbatch", tmp_path, **names)
    check_cluster_file(file)
    log = tmp_path / "job.log"
    # where a node has two processors, three workers are on both
    train = f"vader-ray train {recipe} --workers 3 --run-name mine --runs-dir {tmp_path}/runs machine.use_gpu=false"
    job = client(f"sbatch --parsable --output {log} {file} {train}").strip()
    checkpoints = shared / "runs" / "mine" / "checkpoints"
    _wait(lambda: len(list(checkpoints.glob("checkpoint_*/state.json"))) > 0, log, state)
    client(f"scontrol requeue {job}")
    _wait(lambda: state() == "PENDING", log, state)
    client(f"scontrol update job {job} StartTime=now")  # Slurm lets it wait for two minutes
    _wait(lambda: state() == "COMPLETED", log, state)
    summary = json.loads((tmp_path / "runs" / "mine" / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("completed", NUM_STEPS)
    assert sorted(read_queries(tmp_path / "runs" / "mine" / "queries")["video"].to_pylist()) == list(range(NUM_STEPS * 3))
    tracked = MlflowClient(tracking_uri=f"sqlite:///{shared}/mlflow/mlflow.db")
    (run,) = tracked.search_runs([item.experiment_id for item in tracked.search_experiments()])
    assert run.info.status == "FINISHED"
    steps = [point.step for point in tracked.get_metric_history(run.info.run_id, "cost/reward_queries")]
    assert sorted(steps) == list(range(NUM_STEPS + 1))
    until = time.monotonic() + 30
    while left := cluster.running("slurmd", "slurmstepd"):
        assert time.monotonic() < until, left
        time.sleep(1)


def _wait(condition: Callable[[], bool], log: Path, state: Callable[[], str]) -> None:
    until = time.monotonic() + 240
    while not condition():
        said = log.read_text() if log.exists() else ""
        assert state() not in ("FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"), said
        assert time.monotonic() < until, said
        time.sleep(0.5)
