"""Description of the environment of a run: Python, packages, commit, GPUs."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import vader_ray
from vader_ray.paths import PACKAGE
from vader_ray.uris import HIDDEN, redact


def describe_environment() -> str:
    """Return the output of ``pip freeze``, after comments with machine, Python, commit and GPUs."""
    about = {
        "host": f"{platform.node()}, {platform.platform()}",
        "python": platform.python_version(),
        "commit": git_commit() or "not under git",
        "gpus": ", ".join(gpu_names()) or "none",
    }
    packages = sorted(
        {f"{package.name}=={package.version}" for package in metadata.distributions()}, key=str.lower
    )
    return "\n".join([*(f"# {key}: {value}" for key, value in about.items()), *packages, ""])


def git_commit() -> str:
    """Return the commit of this package's source, or an empty string outside a repository.

    It ends with ``-dirty`` if files differ from the commit.
    """
    source = Path(vader_ray.__file__)
    git = ("git", "-C", str(source.parent))
    if not _output(*git, "ls-files", source.name):
        return ""
    return _output(*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def command_line() -> str:
    """Return the command that started this process, as a shell takes it; empty in a notebook.

    Passwords of URIs and environment variables of rewards are taken out.
    """
    program, *arguments = sys.argv or [""]
    path = Path(program)
    if not program or path.name == "ipykernel_launcher.py":
        return ""
    is_own = path.name == "vader-ray" or path.parent.name == "vader_ray"
    if path.parent == PACKAGE / "sweeps":
        start = ["vader-ray", "sweep", path.stem]
    else:
        start = ["vader-ray"] if is_own else ["python", program]
    return shlex.join([*start, *map(_without_secrets, arguments)])


def _without_secrets(argument: str) -> str:
    name, equals, _ = argument.partition("=")
    return f"{name}{equals}{HIDDEN}" if "env_vars" in argument else redact(argument)


def gpu_names() -> list[str]:
    """List the NVIDIA GPUs of this machine, without creating a CUDA context."""
    return _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines()


def _output(*command: str) -> str:
    """Return the output of a command, or an empty string if it fails or is not installed."""
    try:
        done = subprocess.run(  # noqa: S603 (the commands of this file)
            command, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
