"""A Ray cluster of one driver on one machine, which no other user of the machine or of the network can use."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._common.utils import get_default_system_temp_dir
from ray._private import ray_constants

from vader_ray.errors import UserError

_LOOPBACK = "127.0.0.1"


@contextmanager
def start(*, include_dashboard: bool, **settings: Any) -> Iterator[None]:
    """Start a cluster for the duration of the block.

    Its processes require a random token, which only the environment of the driver and of its child processes holds, listen on
    the loopback interface (Ray's; torch's store of a process group with several workers listens on all), and keep their files
    in a folder that only this user can enter. Afterwards the driver's environment is as it was.

    Args:
        include_dashboard: start Ray's dashboard too, with its State API; it requires the token as well.
        settings: more arguments of ``ray.init``.

    Raises:
        UserError: the folder belongs to another user.
    """
    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",  # in child processes, see `_node_address_is_loopback`
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME") or _loopback_interface(),
    }
    folder = _own_folder() / "ray"  # Ray makes the folder that it is given writable for everybody
    with _set_environment(environment):
        try:
            with _node_address_is_loopback():
                ray.init(
                    address="local", include_dashboard=include_dashboard, _temp_dir=str(folder), **settings
                )
            yield
        finally:
            ray.shutdown()


@contextmanager
def _set_environment(variables: dict[str, str]) -> Iterator[None]:
    """Set variables of this process for the duration of the block, and make Ray's core read its token again."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    _reload_authentication()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _reload_authentication()


def _reload_authentication() -> None:
    """Make Ray's core read mode and token again; by itself it reads them once per process."""
    ray._raylet.Config.initialize("")
    ray._raylet.AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _node_address_is_loopback() -> Iterator[None]:
    """Make Ray use the loopback address for its node, as it does by default on macOS and Windows only.

    ``_node_ip_address`` has no effect: `ray.init` replaces a loopback address in it by that of a network. The child processes
    get the same setting from the environment, which Ray reads at its import; the driver has imported it long before.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _loopback_interface() -> str:
    addresses = psutil.net_if_addrs().items()
    return next(name for name, found in addresses if _LOOPBACK in {address.address for address in found})


def _own_folder() -> Path:
    """Return the folder of logs and sockets of this user's clusters; short, because a socket's path has at most 107 bytes."""
    folder = Path(get_default_system_temp_dir()) / f"ray_{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder} belongs to another user; set RAY_TMPDIR to a folder of your own")
    folder.chmod(0o700)
    return folder
