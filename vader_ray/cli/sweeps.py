"""The command that runs a sweep: a packaged script, or one of the user's own."""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from vader_ray.errors import UserError, did_you_mean
from vader_ray.paths import PACKAGE

SCRIPTS = PACKAGE / "sweeps"
"""Folder of the packaged scripts; in the repository a link to ``sweeps/``."""


def sweep_names() -> list[str]:
    """List the names of the packaged sweeps."""
    return sorted(path.stem for path in SCRIPTS.glob("*.py"))


def describe_sweep(name: str) -> str:
    """Return the first line of a packaged script's docstring, without the imports that running it takes."""
    text = ast.get_docstring(ast.parse((SCRIPTS / f"{name}.py").read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def sweep(
    script: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME|FILE.py",
            help="A packaged sweep, or a script of your own. Default: list the packaged ones.",
            autocompletion=sweep_names,
        ),
    ] = None,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ARGUMENTS",
            help="Options of the script, settings of its recipe, KEY=VALUE; see `vader-ray sweep NAME -h`.",
        ),
    ] = None,
) -> None:
    """Train and compare variants of a recipe: the same as `python FILE.py ARGUMENTS`."""
    if script is None:
        print("\n".join(f"{name}: {describe_sweep(name)}" for name in sweep_names()))
        return
    path = _find(script)
    print(f"sweep {path.stem}: starting {path}", flush=True)
    os.execv(sys.executable, [sys.executable, str(path), *(arguments or [])])  # noqa: S606


def _find(script: str) -> Path:
    """Return the path of a packaged script, by its name, or of the user's own.

    Raises:
        UserError: there is none.
    """
    if script in (known := sweep_names()):
        return SCRIPTS / f"{script}.py"
    if script.endswith(".py") and Path(script).is_file():
        return Path(script)
    raise UserError(
        f"there is no sweep {script!r}; {did_you_mean(script, known)}give the path of a script, FILE.py, or "
        f"one of {', '.join(known)}"
    )
