"""Options and error messages that the command line and the sweep scripts share."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from vader_ray.errors import RunFailed, UserError

CONTEXT_SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"]}

OVERRIDES: dict[str, Any] = {
    "metavar": "[KEY=VALUE]...",
    "help": "Settings of the recipe, e.g. sampling.truncation_depth=2.",
}
Overrides = Annotated[list[str] | None, typer.Argument(**OVERRIDES)]
RunsDir = Annotated[Path, typer.Option(help="Folder in which runs are kept.")]
Storage = Annotated[
    str | None,
    typer.Option(
        help="Keep checkpoints and a copy of the run's folder there, for machines without a common disk: "
        "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or a shared folder.",
        envvar="VADER_RAY_STORAGE",
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of every error.")]


def use_utf8() -> None:
    """Start this program again in Python's UTF-8 mode if the locale is ASCII, and let output never fail.

    In an ASCII locale Python cannot pass on a prompt or a path with other letters. Characters that the
    terminal's encoding lacks are written as escape sequences.
    """
    is_ascii = codecs.lookup(sys.getfilesystemencoding()).name == "ascii"
    if is_ascii and os.environ.get("PYTHONUTF8") != "1":  # python -E would ignore it
        sys.stdout.flush()
        os.execve(sys.executable, sys.orig_argv, os.environ | {"PYTHONUTF8": "1"})  # noqa: S606
    codecs.register_error("vader_ray", _encodable)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="vader_ray")


def _encodable(error: UnicodeError) -> tuple[str | bytes, int]:
    """Encode a byte of a path that is no text as this byte, and any other character as an escape sequence."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


@contextmanager
def explain_errors(*, debug: bool) -> Iterator[None]:
    """End the command with one message: status 2 for a `UserError`, 1 for a `RunFailed`, 130 for Ctrl-C.

    Any other exception is a bug and keeps its traceback; with `debug`, all do.
    """
    try:
        yield
    except (UserError, RunFailed) as error:
        if debug:
            raise
        print(f"vader-ray: {error}", file=sys.stderr)
        raise typer.Exit(2 if isinstance(error, UserError) else 1) from None
    except KeyboardInterrupt:
        print("stopped; `--resume` continues from the last checkpoint", file=sys.stderr)
        raise typer.Exit(130) from None
