"""Commands for the services around runs: MLflow, shared reward actors, preemption notices."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from vader_ray.display import display_stages


def sync(folder: Annotated[Path, typer.Argument(help="Folder of a run.")]) -> None:
    """Send MLflow the results that a run could not deliver."""
    with display_stages(sys.stderr, f"sync {folder}: sending to MLflow what waits there"):
        from vader_ray.orchestration.tracking.mlflow_runs import deliver_waiting

        message = deliver_waiting(folder)
    print(message)


def pools(
    stop: Annotated[str | None, typer.Option(help="Stop the pool of this name.")] = None,
) -> None:
    """List the shared pools of reward actors on the cluster of RAY_ADDRESS, or stop one."""
    with display_stages(sys.stderr, "connecting to the Ray cluster"):
        from vader_ray.orchestration.clusters import connection
        from vader_ray.orchestration.reward_service import pool

        with connection.existing():
            num_stopped = None if stop is None else pool.stop_pool(stop)
            described = pool.describe_pools()
    if num_stopped is not None:
        print(f"{stop}: {num_stopped} actors stopped")
    for name, setting in described.items():
        print(f"{name}: {setting}")


def watch_notices(
    cloud: Annotated[Literal["aws", "gcp"], typer.Argument(help="The cloud of this machine.")],
    every: Annotated[float, typer.Option(help="Seconds between requests to the metadata service.")] = 5.0,
) -> None:
    """Drain this machine's Ray node when the cloud announces preemption, so that runs keep every step."""
    print(f"watching for notices of {cloud} every {every:g} s, until this command is stopped", flush=True)
    from vader_ray.orchestration.clusters.preemption import watch_preemption

    watch_preemption(cloud, every)
