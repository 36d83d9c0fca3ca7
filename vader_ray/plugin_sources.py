"""Read a plugin's class from its source, without an import: the frameworks of plugins take seconds."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

PACKAGE = __name__.partition(".")[0]
Scalar = str | int | float | bool
Value = Scalar | tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class ClassSource:
    """A class as its source describes it."""

    summary: str
    """First line of the docstring."""
    attributes: Mapping[str, Value]
    """Class attributes, inherited ones too, whose values are constants or are put together from constants."""


def read_class(module: str, ending: str) -> ClassSource:
    """Read the public class of a module of this package whose name ends in ``ending``."""
    source = _read_module(module)
    name = next(name for name in source.classes if name.endswith(ending) and not name.startswith("_"))
    docstring = ast.get_docstring(source.classes[name])
    assert docstring is not None, f"{module}.{name} has no docstring"
    return ClassSource(docstring.splitlines()[0], source.attributes(name))


@dataclass(frozen=True, slots=True)
class _ModuleSource:
    """The classes, imports and constants of a module."""

    classes: dict[str, ast.ClassDef] = field(default_factory=dict)
    origins: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Name imported from this package → its module, and its name there."""
    constants: dict[str, Value] = field(default_factory=dict)

    def attributes(self, name: str) -> dict[str, Value]:
        """Return the constant attributes of a class and of its base classes in this package."""
        if name in self.origins:
            module, original = self.origins[name]
            return _read_module(module).attributes(original)
        if name not in self.classes:
            return {}
        found: dict[str, Value] = {}
        for base in reversed(self.classes[name].bases):
            found |= self.attributes(base.id) if isinstance(base, ast.Name) else {}
        body = self.classes[name].body
        named = {target for statement in body for target, _ in _assignments(statement)}
        inherited = {name: value for name, value in found.items() if name not in named}
        return inherited | self.assigned(body)

    def assigned(self, statements: list[ast.stmt]) -> dict[str, Value]:
        """Return the constants that statements assign to names."""
        pairs = (pair for statement in statements for pair in _assignments(statement))
        return {name: value for name, node in pairs if (value := self._value(node)) is not None}

    def _value(self, node: ast.expr) -> Value | None:
        """Return the value of a constant, of a constant's name or of an f-string of such; else None."""
        match node:
            case ast.Constant(value=value) if isinstance(value, Scalar):
                return value
            case ast.Tuple(elts=elements):
                items = [self._value(element) for element in elements]
                return None if None in items else tuple(items)  # type: ignore[arg-type]
            case ast.Name(id=name) if name in self.origins:
                module, original = self.origins[name]
                return _read_module(module).constants.get(original)
            case ast.Name(id=name):
                return self.constants.get(name)
            case ast.FormattedValue(value=inner):
                return self._value(inner)
            case ast.JoinedStr(values=parts):
                texts = [self._value(part) for part in parts]
                return None if None in texts else "".join(map(str, texts))
        return None


def _assignments(statement: ast.stmt) -> list[tuple[str, ast.expr]]:
    """Return the names that a statement assigns, with the expressions of their values."""
    match statement:
        case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
            pairs = zip(targets, values, strict=True)
            return [(target.id, value) for target, value in pairs if isinstance(target, ast.Name)]
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            return [(name, value)]
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
            return [(name, value)]
    return []


@lru_cache
def _read_module(name: str) -> _ModuleSource:
    tree = ast.parse(_path_of(name).read_text(encoding="utf-8"))
    source = _ModuleSource()
    for statement in tree.body:
        if isinstance(statement, ast.ClassDef):
            source.classes[statement.name] = statement
        elif isinstance(statement, ast.ImportFrom) and str(statement.module).startswith(f"{PACKAGE}."):
            for alias in statement.names:
                source.origins[alias.asname or alias.name] = (str(statement.module), alias.name)
    for statement in tree.body:
        source.constants.update(source.assigned([statement]))
    return source


def _path_of(module: str) -> Path:
    path = Path(__file__).parent.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
