"""Description of the environment of a run: Python, packages, commit, GPUs."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import vader_ray


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
