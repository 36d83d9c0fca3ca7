"""Checks of the shell scripts in ``clusters/``."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from shutil import which

from vader_ray.orchestration.clusters.cloud_access import cidr_errors

SCRIPT_KINDS = {".sbatch": "a batch script", ".sh": "a shell script"}
"""Kind of script by the suffix of its file."""
_CIDR = re.compile(r"^ssh_cidr=[\"']?([^\"'\s]*)", re.MULTILINE)


def script_errors(path: Path, text: str) -> Iterator[str]:
    """Yield what would keep a script from running, and a range of addresses that is wrong or everyone."""
    lines = text.splitlines()
    if not any(line.strip() and not line.lstrip().startswith("#") for line in lines):
        yield f"it contains no command; {SCRIPT_KINDS[path.suffix]} that runs one is expected"
        return
    if not lines[0].startswith("#!"):
        yield f"line 1: {lines[0][:60]!r} is not an interpreter; begin with #!/usr/bin/env bash"
    if path.suffix == ".sbatch" and not any(line.startswith("#SBATCH ") for line in lines):
        yield "no line begins with #SBATCH, so Slurm would use its defaults: one task without a GPU"
    yield from (f"ssh_cidr: {error}" for value in _CIDR.findall(text) for error in cidr_errors(value))
    yield from _syntax_errors(path)


def _syntax_errors(path: Path) -> list[str]:
    bash = which("bash") or "/bin/bash"
    command = [bash, "-n", "--", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (runs nothing)
    return done.stderr.splitlines()
