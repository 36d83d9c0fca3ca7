"""What each of a run's Ray processes does first."""

from __future__ import annotations

import os

import ray


def pin_ray_address() -> None:
    """Name this process's own cluster to Ray's State API, which otherwise asks the one that was started last on the machine.

    Ray Train asks it every second whether a run's controller lives, and takes the workers away when that cluster knows of none.
    """
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address


HOOK = f"{__name__}.{pin_ray_address.__name__}"
