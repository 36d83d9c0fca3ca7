"""A Ray cluster of one driver on one machine, which other users of machine and network cannot use."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray

from vader_ray.errors import UserError
from vader_ray.orchestration import ray_private

_LOOPBACK = "127.0.0.1"


@contextmanager
def start(*, include_dashboard: bool, **settings: Any) -> Iterator[None]:
    """Start a cluster for the duration of the block.

    Its processes require a random token, which only the environment of the driver and of its child processes
    holds, listen on the loopback interface (Ray's; torch's store of a process group with several workers
    listens on all), and keep their files in a folder that only this user can enter. Afterwards the driver's
    environment is as it was.

    Args:
        include_dashboard: start Ray's dashboard too, with its State API; it requires the token as well.
        settings: more arguments of ``ray.init``.

    Raises:
        UserError: the folder belongs to another user.
    """
    environment = ray_private.LOOPBACK_ENVIRONMENT | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME") or _loopback_interface(),
    }
    folder = _own_folder() / "ray"  # Ray makes the folder that it is given writable for everybody
    with _set_environment(environment):
        try:
            with ray_private.loopback_node_address():
                ray.init(
                    address="local", include_dashboard=include_dashboard, _temp_dir=str(folder), **settings
                )
            yield
        finally:
            ray.shutdown()


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
