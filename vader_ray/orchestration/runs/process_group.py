"""How the workers of a run find each other.

Uses private functions of Ray Train, because of which, too, `ray` is pinned to one minor version.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import (
    _set_torch_distributed_env_vars,
    _setup_torch_process_group,
    _TorchBackend,
)

from vader_ray.orchestration import ray_private
from vader_ray.orchestration.clusters import private_cluster


@dataclass
class ProcessGroupConfig(TorchConfig):  # type: ignore[misc]
    """Process group of Ray Train, without an open port in a private cluster.

    Ray Train's own has a TCP store, which listens on all interfaces and answers everyone.
    """

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """Class that Ray Train's controller uses."""
        return _Backend


class _Backend(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Connect the workers, through a file where all are on this machine."""
        if not private_cluster.is_private():
            super().on_start(worker_group, backend_config)
            return
        use_gpu = worker_group.get_resources_per_worker().get("GPU", 0) > 0
        settings = {
            "backend": "nccl" if use_gpu else "gloo",
            "world_size": len(worker_group),
            "init_method": f"file://{ray_private.session_folder()}/workers_{uuid4().hex}",
            "timeout_s": backend_config.timeout_s,
        }
        worker_group.execute(_set_torch_distributed_env_vars)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank, _setup_torch_process_group, world_rank=rank, **settings
                )
                for rank in range(len(worker_group))
            ]
        )
