"""Uses of Ray's private functions, because of which `ray` is pinned to one minor version."""

from __future__ import annotations

from pathlib import Path

import ray
from ray.autoscaler._private.util import prepare_config as prepare_config
from ray.autoscaler._private.util import validate_config as validate_config


def is_node_draining() -> bool:
    """Return whether the node of this process is being drained, since it will be taken away."""
    node_id: str = ray.get_runtime_context().get_node_id()
    return node_id in ray._private.state.state.get_draining_nodes()


def logs_folder() -> Path:
    """Return the folder of Ray's logs on this machine."""
    return Path(ray._private.worker._global_node.get_logs_dir_path())
