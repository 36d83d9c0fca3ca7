"""What KubeRay's resources may hold, for finding mistakes without a Kubernetes server.

Field names, requirements and choices are those of the CRDs ``ray.io_rayclusters`` and ``ray.io_rayjobs``, version v1, of
KubeRay 1.7.0 (github.com/ray-project/kuberay, helm-chart/kuberay-operator/crds). What lies deeper than a container's own
fields is left to the server.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator
from pydantic.alias_generators import to_camel

Mapping = dict[str, Any]


class _Resource(BaseModel):
    """Base: unknown fields are mistakes, names are written like Kubernetes'."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel)


class Container(_Resource):
    """A container of a pod."""

    name: str
    image: str
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    command: list[str] | None = None
    args: list[str] | None = None
    working_dir: str | None = None
    env: list[Mapping] = []
    env_from: list[Mapping] = []
    ports: list[Mapping] = []
    resources: Mapping = {}
    volume_mounts: list[Mapping] = []
    lifecycle: Mapping | None = None
    liveness_probe: Mapping | None = None
    readiness_probe: Mapping | None = None
    startup_probe: Mapping | None = None
    security_context: Mapping | None = None


class PodSpec(BaseModel):
    """A pod; its many other fields are not looked at."""

    model_config = ConfigDict(extra="allow", frozen=True, alias_generator=to_camel)

    containers: list[Container] = Field(min_length=1)
    volumes: list[Mapping] = []

    @model_validator(mode="after")
    def _mounts_exist(self) -> Self:
        volumes = {volume["name"] for volume in self.volumes}
        for container in self.containers:
            for mount in container.volume_mounts:
                if mount["name"] not in volumes:
                    raise ValueError(
                        f"{container.name} mounts {mount['name']!r}, which is none of the pod's volumes"
                    )
        return self


class PodTemplate(_Resource):
    """``template`` of a group."""

    metadata: Mapping | None = None
    spec: PodSpec


class HeadGroup(_Resource):
    """``headGroupSpec``."""

    template: PodTemplate
    ray_start_params: dict[str, str] = {}
    enable_ingress: bool | None = None
    head_service: Mapping | None = None
    ingress_options: Mapping | None = None
    labels: Mapping | None = None
    resources: Mapping | None = None
    service_type: Literal["ClusterIP", "NodePort", "LoadBalancer"] | None = None


class WorkerGroup(_Resource):
    """An item of ``workerGroupSpecs``."""

    group_name: str
    min_replicas: NonNegativeInt
    max_replicas: NonNegativeInt
    template: PodTemplate
    replicas: NonNegativeInt | None = None
    ray_start_params: dict[str, str] = {}
    idle_timeout_seconds: NonNegativeInt | None = None
    labels: Mapping | None = None
    num_of_hosts: PositiveInt | None = None
    priority: int | None = None
    resources: Mapping | None = None
    scale_strategy: Mapping | None = None
    suspend: bool | None = None

    @model_validator(mode="after")
    def _replicas_fit(self) -> Self:
        if self.replicas is not None and not self.min_replicas <= self.replicas <= self.max_replicas:
            raise ValueError(f"replicas={self.replicas} is not between minReplicas and maxReplicas")
        return self


class AutoscalerOptions(_Resource):
    """``autoscalerOptions``."""

    version: Literal["v1", "v2"] | None = None
    idle_timeout_seconds: NonNegativeInt | None = None
    upscaling_mode: Literal["Default", "Aggressive", "Conservative"] | None = None
    image: str | None = None
    image_pull_policy: str | None = None
    command: list[str] | None = None
    args: list[str] | None = None
    env: list[Mapping] = []
    env_from: list[Mapping] = []
    resources: Mapping | None = None
    security_context: Mapping | None = None
    volume_mounts: list[Mapping] = []


class RayClusterSpec(_Resource):
    """``spec`` of a RayCluster and ``rayClusterSpec`` of a RayJob."""

    head_group_spec: HeadGroup
    ray_version: str
    """Optional for KubeRay; required here, for a check that the versions match."""
    worker_group_specs: list[WorkerGroup] = []
    enable_in_tree_autoscaling: bool | None = None
    autoscaler_options: AutoscalerOptions | None = None
    auth_options: Mapping | None = None
    gcs_fault_tolerance_options: Mapping | None = None
    head_service_annotations: Mapping | None = None
    history_server_options: Mapping | None = None
    managed_by: str | None = None
    network_policy: Mapping | None = None
    suspend: bool | None = None
    tls_options: Mapping | None = None
    upgrade_strategy: Mapping | None = None


class RayJobSpec(_Resource):
    """``spec`` of a RayJob."""

    entrypoint: str
    ray_cluster_spec: RayClusterSpec | None = None
    cluster_selector: dict[str, str] | None = None
    active_deadline_seconds: PositiveInt | None = None
    backoff_limit: NonNegativeInt | None = None
    deletion_strategy: Mapping | None = None
    entrypoint_num_cpus: float | None = None
    entrypoint_num_gpus: float | None = None
    entrypoint_resources: str | None = None
    job_id: str | None = None
    managed_by: str | None = None
    metadata: dict[str, str] | None = None
    pre_running_deadline_seconds: PositiveInt | None = None
    runtime_env_yaml: str | None = Field(default=None, alias="runtimeEnvYAML")
    shutdown_after_job_finishes: bool | None = None
    submission_mode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"] | None = None
    submitter_config: Mapping | None = None
    submitter_pod_template: Mapping | None = None
    suspend: bool | None = None
    ttl_seconds_after_finished: NonNegativeInt | None = None

    @model_validator(mode="after")
    def _has_a_cluster(self) -> Self:
        if (self.ray_cluster_spec is None) == (self.cluster_selector is None):
            raise ValueError(
                "give either rayClusterSpec, a cluster of its own, or clusterSelector, one that runs already"
            )
        return self


class RayCluster(_Resource):
    """A RayCluster."""

    api_version: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Mapping
    spec: RayClusterSpec


class RayJob(_Resource):
    """A RayJob."""

    api_version: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Mapping
    spec: RayJobSpec


KINDS: dict[str, type[BaseModel]] = {"RayCluster": RayCluster, "RayJob": RayJob}
