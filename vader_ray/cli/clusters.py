"""Commands for the services around runs: MLflow, shared reward actors, preemption notices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def sync(folder: Annotated[Path, typer.Argument(help="Folder of a run.")]) -> None:
    """Send MLflow the results that a run could not deliver."""
    from vader_ray.orchestration.tracking.mlflow_runs import deliver_waiting

    print(deliver_waiting(folder))


def pools(
    stop: Annotated[str | None, typer.Option(help="Stop the pool of this name.")] = None,
) -> None:
    """List the shared pools of reward actors on the cluster of RAY_ADDRESS, or stop one."""
    from vader_ray.orchestration.clusters import connection
    from vader_ray.orchestration.reward_service import pool

    with connection.existing():
        if stop is not None:
            print(f"{stop}: {pool.stop_pool(stop)} actors stopped")
        for name, setting in pool.describe_pools().items():
            print(f"{name}: {setting}")


def watch_notices(
    cloud: Annotated[Literal["aws", "gcp"], typer.Argument(help="The cloud of this machine.")],
    every: Annotated[float, typer.Option(help="Seconds between requests to the metadata service.")] = 5.0,
) -> None:
    """Drain this machine's Ray node when the cloud announces preemption, so that runs keep every step."""
    from vader_ray.orchestration.clusters.preemption import watch_preemption

    watch_preemption(cloud, every)
