"""A Ray cluster of one driver on one machine, which other users of machine and network cannot use."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import ray

from vader_ray.errors import RunFailed, UserError
from vader_ray.orchestration import ray_private
from vader_ray.orchestration.clusters.loss_watch import exit_when_lost

_LOOPBACK = "127.0.0.1"
_START_ATTEMPTS = 4
_KEPT_SESSIONS = 3
_QUIET_SECONDS = 300.0


@contextmanager
def start(*, include_dashboard: bool, on_lost: Callable[[str], str], **settings: Any) -> Iterator[None]:
    """Start a cluster for the duration of the block.

    Its processes require a random token, which only the environment of the driver and of its child processes
    holds, listen on the loopback interface, export no metrics, and keep their files in a folder that only
    this user can enter. Afterwards the driver's environment is as it was.

    Args:
        include_dashboard: start Ray's dashboard too, with its State API; it requires the token as well.
        on_lost: as in `exit_when_lost`.
        settings: more arguments of ``ray.init``.

    Raises:
        UserError: the folder belongs to another user.
        RunFailed: Ray did not start, because the machine is too busy.
    """
    environment = ray_private.LOOPBACK_ENVIRONMENT | ray_private.NO_METRICS_ENVIRONMENT
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # an actor that polls whether nodes are drained
        # the control service keeps a record of each call of an actor: 2.3 KiB, 100,000 of them by default
        "RAY_task_events_max_num_task_in_gcs": "1000",
        "RAY_prestart_worker_first_driver": "0",  # they lack our setup hook, so that none would be used
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME") or _loopback_interface(),
    }
    folder = _own_folder() / "ray"  # Ray makes the folder that it is given writable for everybody
    _sweep_sessions(folder)
    with _set_environment(environment), ray_private.quiet_loss():
        try:
            with ray_private.loopback_node_address():
                _init(str(folder), include_dashboard=include_dashboard, **settings)
            with exit_when_lost(on_lost):
                yield
        finally:
            ray.shutdown()


def _init(folder: str, **settings: Any) -> None:
    """Start Ray; on a busy machine, where its processes take too long, start it again."""
    for _ in range(_START_ATTEMPTS):
        before = _processes_with(folder)
        try:
            ray.init(address="local", _temp_dir=folder, **settings)
        except Exception as error:
            if not any(part in str(error) for part in ray_private.START_TIMED_OUT):
                raise
            late = _processes_with(folder) - before
            for process in late:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(late, timeout=30)
        else:
            return
    raise RunFailed(
        f"Ray's processes did not start within 30 seconds, {_START_ATTEMPTS} times: this machine is too "
        "busy; start the command again when it has less to do"
    )


def _sweep_sessions(folder: Path) -> None:
    """Delete the files of this user's clusters that have ended, except for the last ones with their logs.

    The name of a session ends with the id of its driver's process. One whose driver or other processes run,
    or whose logs have changed within the last minutes, stays.
    """
    in_use = " ".join(" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))
    sessions = sorted(path for path in folder.glob("session_*_*_*") if not path.is_symlink())
    for session in sessions[:-_KEPT_SESSIONS]:
        driver = session.name.rpartition("_")[2]
        runs = session.name in in_use or not driver.isdigit() or psutil.pid_exists(int(driver))
        if not runs and time.time() - _last_change(session) > _QUIET_SECONDS:
            shutil.rmtree(session, ignore_errors=True)  # another driver deletes it too


def _last_change(session: Path) -> float:
    logs = session / "logs"
    with suppress(OSError):
        return max((path.lstat().st_mtime for path in logs.iterdir()), default=0.0)
    return 0.0


def _processes_with(folder: str) -> set[psutil.Process]:
    """Return the descendants of this process whose command line has the folder, as those of Ray have."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if folder in " ".join(process.cmdline()):
                found.add(process)
    return found


@contextmanager
def _set_environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables for the duration of the block, and make Ray's core read its token again."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    ray_private.reload_authentication()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        ray_private.reload_authentication()


def is_private() -> bool:
    """Return whether this process's cluster is one of `start`: only those have a loopback address."""
    address: str = ray.get_runtime_context().gcs_address
    return address.startswith(f"{_LOOPBACK}:")


def _loopback_interface() -> str:
    addresses = psutil.net_if_addrs().items()
    return next(name for name, found in addresses if _LOOPBACK in {address.address for address in found})


def _own_folder() -> Path:
    """Return the folder of logs and sockets of this user's clusters.

    Its path is short, because the path of a socket has at most 107 bytes.
    """
    folder = ray_private.temporary_folder() / f"ray_{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder} belongs to another user; set RAY_TMPDIR to a folder of your own")
    folder.chmod(0o700)
    return folder
