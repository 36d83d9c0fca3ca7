"""``clusters/kuberay-*.yaml`` on real nodes, and against KubeRay's own definitions of its resources.

The definitions are not part of this repository. VADER_RAY_KUBERAY_CRDS names their folder, a copy of
``helm-chart/kuberay-operator/crds`` of github.com/ray-project/kuberay at the version named in
``vader_ray/orchestration/clusters/kuberay.yaml``.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.helpers.cluster_files import CLUSTERS
from vader_ray.orchestration.clusters import kuberay

FILES = ("kuberay-cluster.yaml", "kuberay-job.yaml")
NODE_CPUS, NODE_GIB = 7.5, 27.0
"""What Kubernetes leaves of a node of 8 vCPU and 32 GB (g2-standard-8: it keeps 0.1 and 3.7)."""
LEVELS = {
    "cluster": (),
    "head": ("headGroupSpec",),
    "workers": ("workerGroupSpecs", 0),
    "autoscaler": ("autoscalerOptions",),
    "authentication": ("authOptions",),
    "container": ("headGroupSpec", "template", "spec", "containers", 0),
    "containerSecurity": ("headGroupSpec", "template", "spec", "containers", 0, "securityContext"),
    "podSecurity": ("headGroupSpec", "template", "spec", "securityContext"),
}
"""Part of our schema → its path in the definition of a RayCluster's ``spec``."""


def _resources(*kinds: str) -> list[dict[str, Any]]:
    texts = ((CLUSTERS / name).read_text() for name in FILES)
    return [found for text in texts for found in yaml.safe_load_all(text) if found["kind"] in kinds]


def test_every_pod_fits_a_node_of_eight_cpus() -> None:
    clusters = [found["spec"] for found in _resources("RayCluster")]
    clusters += [found["spec"]["rayClusterSpec"] for found in _resources("RayJob")]
    for cluster in clusters:
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            requests = [each["resources"]["requests"] for each in group["template"]["spec"]["containers"]]
            assert sum(float(each["cpu"]) for each in requests) <= NODE_CPUS
            assert all(each["memory"].endswith("Gi") for each in requests)
            assert sum(float(each["memory"].removesuffix("Gi")) for each in requests) <= NODE_GIB


@pytest.mark.parametrize("name", FILES)
def test_the_placeholders_in_comments_are_fields_of_a_pod(name: str) -> None:
    text = re.sub(r"^( *)#(?=\w+:)", r"\1", (CLUSTERS / name).read_text(), flags=re.MULTILINE)
    (document,) = [found for found in yaml.safe_load_all(text) if found["kind"] in ("RayCluster", "RayJob")]
    cluster = document["spec"].get("rayClusterSpec", document["spec"])
    pod = cluster["workerGroupSpecs"][0]["template"]["spec"]
    assert pod.keys() >= {"tolerations", "nodeSelector", "priorityClassName"}
    assert list(kuberay.kubernetes_errors([document])) == []


def _definition(kind: str) -> dict[str, Any]:
    """KubeRay's own schema of a resource, version v1."""
    folder = os.environ.get("VADER_RAY_KUBERAY_CRDS")
    if folder is None:
        pytest.skip("VADER_RAY_KUBERAY_CRDS does not name a folder with KubeRay's definitions")
    document = yaml.safe_load((Path(folder) / f"ray.io_{kind.lower()}s.yaml").read_text())
    (schema,) = [
        version["schema"]["openAPIV3Schema"]
        for version in document["spec"]["versions"]
        if version["name"] == "v1"
    ]
    return _strict(schema)


def _strict(schema: Any) -> Any:
    """The schema as the API server applies it: unknown fields are errors, and ``int-or-string`` is either."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items()}
    if strict.get("type") == "object" and isinstance(strict.get("properties"), dict):
        strict.setdefault("additionalProperties", False)
    if strict.get("x-kubernetes-int-or-string"):
        strict = {key: value for key, value in strict.items() if key not in ("type", "pattern")}
    return strict


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_the_files_are_valid_for_kuberays_own_definitions(kind: str) -> None:
    schema = _definition(kind)
    schema["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own, not described there
    validator = jsonschema.Draft202012Validator(schema)
    (resource,) = _resources(kind)
    assert [error.message for error in validator.iter_errors(resource)] == []
    resource["spec"]["headGroupSpecs"] = {}
    assert len(list(validator.iter_errors(resource))) == 1


@pytest.mark.slow
def test_our_schema_has_exactly_the_fields_of_kuberays_own() -> None:
    spec = _definition("RayCluster")["properties"]["spec"]
    ours = yaml.safe_load(Path(kuberay.__file__).with_suffix(".yaml").read_text())["$defs"]
    for name, path in LEVELS.items():
        level = spec
        for step in path:
            level = level["items"] if step == 0 else level["properties"][step]
        assert ours[name]["properties"].keys() == level["properties"].keys(), name
    job = _definition("RayJob")["properties"]["spec"]
    assert ours["job"]["properties"].keys() == job["properties"].keys()
