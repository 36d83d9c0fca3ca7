"""Options and error messages that the command line and the sweep scripts share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from vader_ray.errors import RunFailed, UserError

CONTEXT_SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"]}

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Settings of the recipe, e.g. sampling.truncation_depth=2."
    ),
]
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
