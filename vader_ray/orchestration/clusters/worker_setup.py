"""Setup hook of every Ray worker process of a run."""

from __future__ import annotations

import os

import ray


def pin_ray_address() -> None:
    """Set ``RAY_ADDRESS`` to this process's own cluster.

    Without it, Ray's State API uses the cluster that was started last on the machine. Ray Train checks through this API
    every second that the run's controller is alive, and would end the workers if another cluster does not have it.
    """
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address


HOOK = f"{__name__}.{pin_ray_address.__name__}"
"""Dotted name of the hook, as Ray's runtime environment needs it."""
