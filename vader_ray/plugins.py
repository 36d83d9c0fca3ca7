"""Find plugins (rewards, model families) by name: a module of one package, or a dotted name outside it.

One rule holds for every kind of plugin: a module offers the only class that it defines and whose name ends in
the kind, such as ``HPSReward`` in ``rewards/hps.py`` and ``WanModel`` in ``models/wan.py``.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from vader_ray.errors import UserError, did_you_mean
from vader_ray.plugin_sources import ClassSource, read_class


@dataclass(frozen=True, slots=True)
class Registry:
    """The plugins of one kind."""

    package: str
    """Package whose modules are plugins. A sub-package is one, too; its class is in its module ``model``."""
    kind: str
    """End of every plugin class's name."""
    noun: str
    """Begin of error messages: the setting, or the concept."""
    shared: tuple[str, ...] = ("base", "core")
    """Modules and sub-packages that are no plugins."""

    def names(self) -> list[str]:
        """Return the names of the package's plugins, sorted."""
        modules = [
            path
            for path in self._folder().iterdir()
            if path.suffix == ".py" or (path / "__init__.py").is_file()
        ]
        return sorted({path.stem for path in modules} - {"__init__", *self.shared})

    def resolve(self, name: str) -> Any:
        """Return the class of a plugin, or what a dotted name ``my.module.attribute`` names.

        Raises:
            UserError: there is no such plugin; the message gives the rule and the names.
        """
        self.check_name(name)
        if name in self.names():
            return self.only_class(importlib.import_module(self._module_of(name)))
        if (module := _import_if_found(name)) is not None:
            return self.only_class(module)
        return import_attribute(name, self.noun)

    def check_name(self, name: str) -> None:
        """Refuse what is neither a plugin of the package nor a dotted name; import nothing.

        Raises:
            UserError: as `resolve`.
        """
        is_dotted = "." in name and all(part.isidentifier() for part in name.split("."))
        if name not in self.names() and not is_dotted:
            raise UserError(
                f"{self.noun}: there is no {name!r}; {did_you_mean(name, self.names())}give one of "
                f"{', '.join(self.names())}, or a dotted name of your own: my.module (the only class there "
                f"whose name ends in {self.kind}) or my.module.ClassName"
            )

    def read(self, name: str) -> ClassSource:
        """Read the class of one of the package's plugins from its source; import nothing."""
        return read_class(self._module_of(name), self.kind)

    def _module_of(self, name: str) -> str:
        inner = ".model" if (self._folder() / name).is_dir() else ""
        return f"{self.package}.{name}{inner}"

    def only_class(self, module: ModuleType) -> type:
        """Return the only public class that a module defines and whose name ends in the kind.

        Raises:
            UserError: the module defines none, or several.
        """
        found = {
            name: value
            for name, value in vars(module).items()
            if isinstance(value, type) and value.__module__ == module.__name__
            if name.endswith(self.kind) and not name.startswith("_")
        }
        if len(found) == 1:
            return next(iter(found.values()))
        raise UserError(
            f"{self.noun}: {module.__name__} must define one class whose name ends in {self.kind} and "
            f"defines {', '.join(found) or 'none'}; name the one you mean: {module.__name__}.ClassName"
        )

    def _folder(self) -> Path:
        spec = find_spec(self.package)
        assert spec is not None, self.package
        assert spec.origin is not None
        return Path(spec.origin).parent


REWARDS = Registry("vader_ray.rewards", kind="Reward", noun="reward")
METRICS = Registry("vader_ray.metrics", kind="Metric", noun="metric")
FAMILIES = Registry(
    "vader_ray.models", kind="Model", noun="model.family", shared=("adapters", "base", "core")
)
AUTO_FAMILY = "auto"
"""``model.family`` that is found by the class of the weights' pipeline."""
ALGORITHMS = Registry("vader_ray.alignment.algorithms", kind="Algorithm", noun="algorithm.name")


def import_attribute(name: str, noun: str) -> Any:
    """Return what a dotted name ``my.module.attribute`` names.

    Raises:
        UserError: there is no such module or attribute; the message begins with ``noun``.
    """
    parent, _, attribute = name.rpartition(".")
    module = _import_if_found(parent)
    if module is None:
        raise UserError(
            f"{noun}: there is no module {name!r} or {parent!r}; install it or put its folder on PYTHONPATH"
        )
    if not hasattr(module, attribute):
        raise UserError(f"{noun}: {parent} defines no {attribute!r}; define it there")
    return getattr(module, attribute)


def _import_if_found(name: str) -> ModuleType | None:
    """Import a module; return None if there is none of this name. An import that fails inside it raises."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            return None
        raise
