"""Errors in KubeRay resources, found without a Kubernetes server: by a JSON Schema, and by rules that it cannot express."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

_SCHEMA = Path(__file__).with_suffix(".yaml")


def kuberay_errors(document: dict[str, Any]) -> Iterator[str]:
    """Yield the errors of a RayCluster or RayJob, each with the path of its field."""
    schema = yaml.safe_load(_SCHEMA.read_text(encoding="utf-8"))
    errors = list(jsonschema.Draft202012Validator(schema).iter_errors(document))
    for error in errors:
        yield f"{'.'.join(map(str, error.absolute_path)) or 'top level'}: {error.message}"
    if errors:
        return
    cluster = document["spec"]
    if document["kind"] == "RayJob":
        if ("rayClusterSpec" in cluster) == ("clusterSelector" in cluster):
            yield "spec: give either rayClusterSpec, for a new cluster, or clusterSelector, for a running one"
        cluster = cluster.get("rayClusterSpec", {})
    workers = cluster.get("workerGroupSpecs", [])
    for group in workers:
        yield from _replica_errors(group)
    for group in [cluster["headGroupSpec"], *workers] if cluster else []:
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
