"""Checks of the files in ``clusters/``: placeholders, fields, access, and versions that match the installed
ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import jsonschema
import ray
import yaml

from vader_ray.config.yaml_text import parse_documents, read_text
from vader_ray.errors import UserError
from vader_ray.orchestration.clusters import cloud_access
from vader_ray.orchestration.clusters.kuberay import is_kubernetes, kubernetes_errors
from vader_ray.orchestration.clusters.placeholders import find_placeholders
from vader_ray.orchestration.clusters.scripts import SCRIPT_KINDS, script_errors
from vader_ray.orchestration.ray_private import prepare_config, validate_config

_PACKAGE_VERSION = metadata.version("vader-ray")
_VERSIONS = {
    "Ray": (re.compile(r"\bray(?:\[[\w,]*\])?==([\w.]+)|\brayVersion:\s*\"?([\w.]+)"), ray.__version__),
    "vader_ray": (re.compile(r"\bvader[-_]ray(?:==|:|-)(\d[\w.]*)"), _PACKAGE_VERSION),
}


def is_cluster_file(path: Path) -> bool:
    """Return whether a file is a script, or describes a cluster or the access to one."""
    if not path.is_file():
        return False
    return path.suffix in SCRIPT_KINDS or _kind(_documents(path)) is not None


def check_cluster_file(path: Path) -> str:
    """Check a file and return a line about it.

    Raises:
        UserError: one line per error: a placeholder that is not filled in, a wrong field, another version.
    """
    text = _text(path)
    problems = [*_placeholders(text), *_versions(text), *_open_doors(text)]
    if path.suffix in SCRIPT_KINDS:
        kind: str | None = SCRIPT_KINDS[path.suffix]
        more = list(script_errors(path, text))
    else:
        documents = _documents(path)
        kind, more = _kind(documents), list(_schema_errors(documents))
    if problems := [*problems, *more]:
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))
    return (
        f"{path}: valid for {kind}, complete, made for Ray {ray.__version__} and vader_ray {_PACKAGE_VERSION}"
    )


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text in UTF-8: {error}") from None


def _documents(path: Path) -> list[Any]:
    """Return the documents of a YAML file; JSON is YAML too."""
    try:
        return parse_documents(_text(path))
    except yaml.YAMLError as error:
        raise UserError(f"{path} cannot be read as YAML: {error}") from None


def _kind(documents: list[Any]) -> str | None:
    """Return what the documents are for, or none if it is not a cluster."""
    kinds: dict[str, Callable[[Any], bool]] = {
        "Ray's launcher": _is_launcher,
        "KubeRay": is_kubernetes,
        "an IAM policy": cloud_access.is_policy,
        "a security group": cloud_access.is_security_group,
    }
    return next((kind for kind, matches in kinds.items() if any(map(matches, documents))), None)


def _is_launcher(document: Any) -> bool:
    return isinstance(document, dict) and "cluster_name" in document


def _placeholders(text: str) -> Iterator[str]:
    for name, numbers in find_placeholders(text).items():
        yield f"{name} is not filled in (line {', '.join(map(str, numbers))})"


def _versions(text: str) -> Iterator[str]:
    for package, (pattern, installed) in _VERSIONS.items():
        named = {next(filter(None, groups.groups())) for groups in pattern.finditer(text)}
        for other in sorted(named - {installed}):
            yield (
                f"{package} {other} is named, {installed} is installed here; "
                "all machines need the same version"
            )


def _open_doors(text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), start=1):
        if re.search(r"RAY_AUTH_MODE(=|, value: )[\"']?disabled", re.sub(r"(^|\s)#.*", "", line)):
            yield (
                f"RAY_AUTH_MODE=disabled (line {number}): everyone who reaches Ray's ports can run code on "
                "the cluster; set token"
            )


def _schema_errors(documents: list[Any]) -> Iterator[str]:
    if any(map(is_kubernetes, documents)):
        yield from kubernetes_errors(documents)
    for document in documents:
        if _is_launcher(document):
            yield from _launcher_errors(document)
        elif cloud_access.is_policy(document):
            yield from cloud_access.policy_errors(document)
        elif cloud_access.is_security_group(document):
            yield from cloud_access.security_group_errors(document)


def _launcher_errors(document: dict[str, Any]) -> Iterator[str]:
    """Yield the errors that the installed Ray's cluster launcher finds."""
    try:
        validate_config(prepare_config(document))
    except jsonschema.ValidationError as error:
        yield f"{'.'.join(map(str, error.absolute_path)) or 'top level'}: {error.message}"
    except (ValueError, RuntimeError, click.ClickException) as error:
        yield str(error)
    else:
        yield from cloud_access.network_errors(document)
