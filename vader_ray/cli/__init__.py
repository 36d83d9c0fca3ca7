"""The command ``vader-ray``."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vader_ray.cli import adapters, clusters, inspection, new_recipe, runs, sweeps
from vader_ray.console import CONTEXT_SETTINGS, Debug, explain_errors, use_utf8


class _Group(TyperGroup):
    """A group of commands whose errors end with one message."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        use_utf8()
        return super().main(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with explain_errors(debug=ctx.params["debug"]):
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=CONTEXT_SETTINGS,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(metadata.version("vader-ray"))
        raise typer.Exit


@app.callback()
def main(
    debug: Debug = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Align video diffusion models with reward gradients, on Ray Train and MLflow."""


app.command()(runs.train)
app.command(context_settings={"allow_interspersed_args": False})(sweeps.sweep)
app.command()(runs.evaluate)
app.command()(runs.generate)
app.command()(new_recipe.init)
app.command()(inspection.show)
app.command()(inspection.check)
app.command()(inspection.fetch)
app.command(name="list")(inspection.list_)
app.command()(inspection.report)
app.command()(adapters.export)
app.command()(adapters.mix)
app.command()(adapters.push)
app.add_typer(clusters.commands, name="clusters")
app.command()(clusters.sync)
app.command()(clusters.pools)
app.command("watch-notices")(clusters.watch_notices)
