"""Errors in the Kubernetes resources of a Ray cluster, found without a server by JSON Schemas and rules."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from vader_ray.errors import did_you_mean

_SCHEMA = Path(__file__).with_suffix(".yaml")
_CHECKED = ("RayCluster", "RayJob", "NetworkPolicy")
_KUBERAY_GROUP = "ray.io/"


def is_kubernetes(document: Any) -> bool:
    """Return whether a document is a Kubernetes resource."""
    return isinstance(document, dict) and "apiVersion" in document


def kubernetes_errors(documents: list[Any]) -> Iterator[str]:
    """Yield the errors of a file's resources, each with the path of its field."""
    resources = [document for document in documents if document is not None]
    unknown = list(filter(None, map(_kind_error, resources)))
    yield from unknown
    checked = [item for item in resources if isinstance(item, dict) and item.get("kind") in _CHECKED]
    if not checked and not unknown:
        yield f"none of its resources is a {', '.join(_CHECKED[:-1])} or {_CHECKED[-1]}"
    for resource in checked:
        yield from _resource_errors(resource)


def _kind_error(resource: Any) -> str | None:
    """Return the error of a resource that Kubernetes or KubeRay would not know, or that is misspelled."""
    kind = resource.get("kind") if isinstance(resource, dict) else None
    if not isinstance(kind, str):
        return f"kind: {kind!r} is not the kind of a Kubernetes resource"
    near = did_you_mean(kind, _CHECKED)
    if kind in _CHECKED or not (near or str(resource.get("apiVersion")).startswith(_KUBERAY_GROUP)):
        return None
    return f"kind: {kind!r} is not known here; {near}checked are {', '.join(_CHECKED)}"


def _resource_errors(resource: dict[str, Any]) -> Iterator[str]:
    schema = yaml.safe_load(_SCHEMA.read_text(encoding="utf-8"))
    chosen = schema | {"$ref": f"#/$defs/{resource['kind']}"}
    errors = list(jsonschema.Draft202012Validator(chosen).iter_errors(resource))
    for error in errors:
        yield f"{'.'.join(map(str, error.absolute_path)) or 'top level'}: {error.message}"
    if not errors and resource["kind"] == "RayCluster":
        yield from _cluster_errors(resource["spec"], "spec")
    elif not errors and resource["kind"] == "RayJob":
        yield from _job_errors(resource["spec"])


def _job_errors(job: dict[str, Any]) -> Iterator[str]:
    if ("rayClusterSpec" in job) == ("clusterSelector" in job):
        yield "spec: give either rayClusterSpec, for a new cluster, or clusterSelector, for a running one"
    if "rayClusterSpec" in job:
        yield from _cluster_errors(job["rayClusterSpec"], "spec.rayClusterSpec")


def _cluster_errors(cluster: dict[str, Any], path: str) -> Iterator[str]:
    if cluster.get("authOptions", {"mode": "disabled"}).get("mode", "token") != "token":
        yield (
            f"{path}.authOptions: without mode: token, everyone who reaches Ray's ports can run code on the "
            "cluster; add authOptions: {mode: token}"
        )
    workers = cluster.get("workerGroupSpecs", [])
    for group in workers:
        yield from _replica_errors(group)
    for group in [cluster["headGroupSpec"], *workers]:
        yield from _mount_errors(group["template"]["spec"])


def _replica_errors(group: dict[str, Any]) -> Iterator[str]:
    least, most = group["minReplicas"], group["maxReplicas"]
    if not least <= group.get("replicas", least) <= most:
        yield f"{group['groupName']}: replicas={group['replicas']} is not between minReplicas and maxReplicas"


def _mount_errors(pod: dict[str, Any]) -> Iterator[str]:
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    for container in pod["containers"]:
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                yield f"{container['name']} mounts {mount['name']!r}, which is not a volume of its pod"
