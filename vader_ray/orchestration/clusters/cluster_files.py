"""Files of ``clusters/``, checked before they start anything: filled in, well-formed, made for the installed versions."""

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
from pydantic import ValidationError

from vader_ray.errors import UserError
from vader_ray.orchestration.clusters.kuberay import KINDS
from vader_ray.orchestration.ray_private import prepare_config, validate_config

_PACKAGE_VERSION = metadata.version("vader-ray")
_PLACEHOLDER = re.compile(r"<[A-Z][A-Z_]*>")
_VERSIONS = {
    "Ray": (re.compile(r"\bray(?:\[[\w,]*\])?==([\w.]+)|\brayVersion:\s*\"?([\w.]+)"), ray.__version__),
    "vader_ray": (re.compile(r"\bvader[-_]ray(?:==|:)(\d[\w.]*)"), _PACKAGE_VERSION),
}


def is_cluster_file(path: Path) -> bool:
    """Whether a file is a batch script, or YAML of Ray's launcher or of KubeRay; a recipe is none of them."""
    if not path.is_file():
        return False
    return path.suffix == ".sbatch" or any(
        _is_launcher(document) or _is_kuberay(document) for document in _documents(path)
    )


def check_cluster_file(path: Path) -> str:
    """A line that says what was checked.

    Raises:
        UserError: one line per problem: a placeholder that is not filled in, a wrong field, a version that does not match.
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
    """Placeholders outside of comments; directives of Slurm look like comments and count."""
    lines: dict[str, list[int]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        said = line if line.startswith("#SBATCH") else re.sub(r"(^|\s)#.*", "", line)
        for name in _PLACEHOLDER.findall(said):
            lines.setdefault(name, []).append(number)
    for name, numbers in lines.items():
        yield f"{name} is not filled in (line {', '.join(map(str, dict.fromkeys(numbers)))})"


def _versions(text: str) -> Iterator[str]:
    for package, (pattern, installed) in _VERSIONS.items():
        named = {next(filter(None, groups.groups())) for groups in pattern.finditer(text)}
        for other in sorted(named - {installed}):
            yield f"{package} {other} is named, {installed} is installed here; all machines need the same"


def _schema_errors(document: Any) -> Iterator[str]:
    if _is_launcher(document):
        yield from _launcher_errors(document)
    elif _is_kuberay(document) and (kind := KINDS.get(document.get("kind", ""))) is not None:
        try:
            kind.model_validate(document)
        except ValidationError as error:
            for problem in error.errors():
                yield f"{'.'.join(map(str, problem['loc']))}: {problem['msg'].removeprefix('Value error, ')}"


def _launcher_errors(document: dict[str, Any]) -> Iterator[str]:
    """What the launcher of the installed Ray finds wrong."""
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
