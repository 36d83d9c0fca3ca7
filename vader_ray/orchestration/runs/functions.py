"""Rewards given as Python functions, on their way to the other processes of a run.

Ray sends a function of an importable module by its name, and the workers cannot import a script's neighbours
or a notebook's folder. Here the code of modules outside Python's folders of packages is sent itself.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType

from ray import cloudpickle
from ray.cloudpickle.cloudpickle import list_registry_pickle_by_value

from vader_ray import rewards
from vader_ray.errors import UserError


def pack_functions(names: Iterable[str]) -> bytes:
    """Serialise those of the rewards that are registered functions.

    Raises:
        UserError: a function needs something that cannot be sent to another process, such as an open file.
    """
    functions = rewards.registered_functions(names)
    with _sent_by_value({function.__module__.partition(".")[0] for function in functions.values()}):
        try:
            packed: bytes = cloudpickle.dumps(functions)
        except Exception as error:  # cloudpickle raises what the objects raise
            names_of_all = ", ".join(function.__name__ for function in functions.values())
            raise UserError(
                f"rewards: {names_of_all} cannot be sent to the workers ({error}); "
                "create such objects inside the function"
            ) from error
    return packed


def unpack_functions(packed: bytes) -> None:
    """Register the packed functions as rewards of this process."""
    rewards.register_functions(cloudpickle.loads(packed))


@contextmanager
def _sent_by_value(packages: set[str]) -> Iterator[None]:
    """Make cloudpickle send the code of these packages, except for installed ones."""
    already = list_registry_pickle_by_value()
    modules = [
        module
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] in packages and name not in already and not _is_installed(module)
    ]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def _is_installed(module: ModuleType) -> bool:
    """Return whether a module is built in, of the standard library, of an installed package or of ours."""
    file = getattr(module, "__file__", None)
    name = module.__name__.partition(".")[0]
    folders = tuple(sysconfig.get_paths()[kind] for kind in ("stdlib", "platstdlib", "purelib", "platlib"))
    return file is None or name in ("__main__", "vader_ray") or file.startswith(folders)
