"""Commands for clusters and the services around runs: MLflow, shared reward actors, preemption notices."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from vader_ray.display import display_stages
from vader_ray.errors import UserError
from vader_ray.files import write_text
from vader_ray.outputs import check_output_folder, explain_write_errors
from vader_ray.paths import PACKAGE

FILES = PACKAGE / "clusters"
"""Folder of the packaged files of clusters; in the repository a link to ``clusters/``."""
commands = typer.Typer(no_args_is_help=True, help="Files that describe a cluster.")


@commands.callback()
def _files() -> None:
    """Files that describe a cluster."""


@commands.command()
def init(
    kind: Annotated[
        Literal["aws", "gcp", "image", "kuberay", "local", "slurm"],
        typer.Argument(help="Where the machines are; `image`: an image of packages for aws and gcp."),
    ],
    folder: Annotated[Path, typer.Argument(help="Folder of the files.")] = Path("clusters"),
) -> None:
    """Write the files of a kind of cluster, never over others, and print what to fill in next."""
    from vader_ray.orchestration.clusters.placeholders import find_placeholders

    texts = {folder / name: (FILES / name).read_text(encoding="utf-8") for name in files_of(kind)}
    if existing := [str(path) for path in texts if path.exists()]:
        raise UserError(f"{', '.join(existing)} exists; name another folder, or delete it")
    check_output_folder(folder)
    places: dict[str, list[str]] = {}
    for path, text in texts.items():
        with explain_write_errors(path):
            write_text(path, text)
        print(path)
        for name, lines in find_placeholders(text).items():
            places.setdefault(name, []).append(f"{path}:{lines[0]}")
    for name, found in places.items():
        print(f"fill in {name}: {', '.join(found)}")
    main = next(iter(texts))
    print(f"then follow the steps at the top of {main}")


def files_of(kind: str) -> list[Path]:
    """Return the files of a kind of cluster, relative to `FILES`: ``aws.yaml``, then those of ``aws/``."""
    files = [path.relative_to(FILES) for path in FILES.rglob("*") if path.is_file()]
    own = [path for path in files if re.split(r"[-.]", path.parts[0])[0] == kind]
    return sorted(own, key=lambda path: (len(path.parts), path))


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
