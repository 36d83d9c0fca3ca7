"""Checks of the files in ``clusters/``: placeholders, fields, and versions that match the installed ones."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import jsonschema
import ray
import yaml

from vader_ray.errors import UserError
from vader_ray.orchestration.clusters.kuberay import kuberay_errors
from vader_ray.orchestration.ray_private import prepare_config, validate_config

_PACKAGE_VERSION = metadata.version("vader-ray")
_PLACEHOLDER = re.compile(r"<[A-Z][A-Z_]*>")
_VERSIONS = {
    "Ray": (re.compile(r"\bray(?:\[[\w,]*\])?==([\w.]+)|\brayVersion:\s*\"?([\w.]+)"), ray.__version__),
    "vader_ray": (re.compile(r"\bvader[-_]ray(?:==|:)(\d[\w.]*)"), _PACKAGE_VERSION),
}


def is_cluster_file(path: Path) -> bool:
    """Return whether a file is a batch script, or YAML of Ray's cluster launcher or KubeRay, and not a recipe."""
    if not path.is_file():
        return False
    return path.suffix == ".sbatch" or any(
        _is_launcher(document) or _is_kuberay(document) for document in _documents(path)
    )


def check_cluster_file(path: Path) -> str:
    """Check a file and return a line about it.

    Raises:
        UserError: one line per error: a placeholder that is not filled in, a wrong field, another version.
    """
    text = path.read_text(encoding="utf-8")
    problems = [*_placeholders(text), *_versions(text)]
    if path.suffix == ".sbatch":
        kind, more = "a batch script", _shell_errors(path)
    else:
        documents = _documents(path)
        kind = "Ray's launcher" if any(map(_is_launcher, documents)) else "KubeRay"
        more = [problem for document in documents for problem in _schema_errors(document)]
    if problems := [*problems, *more]:
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))
    return (
        f"{path}: valid for {kind}, complete, made for Ray {ray.__version__} and vader_ray {_PACKAGE_VERSION}"
    )


def _documents(path: Path) -> list[Any]:
    try:
        return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML: {error}") from None


def _is_launcher(document: Any) -> bool:
    return isinstance(document, dict) and "cluster_name" in document


def _is_kuberay(document: Any) -> bool:
    return isinstance(document, dict) and "apiVersion" in document


def _placeholders(text: str) -> Iterator[str]:
    """Yield the placeholders outside comments; Slurm directives have the form of comments and are included."""
    lines: dict[str, list[int]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        code = line if line.startswith("#SBATCH") else re.sub(r"(^|\s)#.*", "", line)
        for name in _PLACEHOLDER.findall(code):
            lines.setdefault(name, []).append(number)
    for name, numbers in lines.items():
        yield f"{name} is not filled in (line {', '.join(map(str, dict.fromkeys(numbers)))})"


def _versions(text: str) -> Iterator[str]:
    for package, (pattern, installed) in _VERSIONS.items():
        named = {next(filter(None, groups.groups())) for groups in pattern.finditer(text)}
        for other in sorted(named - {installed}):
            yield f"{package} {other} is named, {installed} is installed here; all machines need the same version"


def _schema_errors(document: Any) -> Iterator[str]:
    if _is_launcher(document):
        yield from _launcher_errors(document)
    elif _is_kuberay(document) and document.get("kind") in ("RayCluster", "RayJob"):
        yield from kuberay_errors(document)


def _launcher_errors(document: dict[str, Any]) -> Iterator[str]:
    """Yield the errors that the installed Ray's cluster launcher finds."""
    try:
        validate_config(prepare_config(document))
    except jsonschema.ValidationError as error:
        yield f"{'.'.join(map(str, error.absolute_path)) or 'top level'}: {error.message}"
    except (ValueError, RuntimeError, click.ClickException) as error:
        yield str(error)


def _shell_errors(path: Path) -> list[str]:
    return subprocess.run(
        ["bash", "-n", str(path)], capture_output=True, text=True, check=False
    ).stderr.splitlines()
