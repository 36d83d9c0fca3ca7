"""A Ray cluster of one driver on one machine, closed to other users of the machine and of the network."""

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
    """Start a cluster for the length of the block.

    Its processes demand a random token, which is in the environment of the driver and of its children only,
    listen on the loopback interface, and keep their files in a folder that only this user can enter. One
    port is open to the network: that of torch's store while several workers train, to which Ray Train gives
    no address. Afterwards the driver's environment is as it was.

    Args:
        include_dashboard: also start Ray's dashboard with its State API; it demands the token as well.
        settings: more arguments of ``ray.init``.

    Raises:
        UserError: the folder belongs to another user.
    """
    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        **ray_private.LOOPBACK_ENVIRONMENT,
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
    """Set variables of this process for the length of the block, and have Ray's core read its token again."""
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
    """Return the folder for logs and sockets of this user's clusters.

    Its path is short, since that of a socket has at most 107 bytes.
    """
    folder = ray_private.temporary_folder() / f"ray_{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder} belongs to another user; set RAY_TMPDIR to a folder of your own")
    folder.chmod(0o700)
    return folder
