"""The command line of the scripts in ``sweeps/``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vader_ray.console import CONTEXT_SETTINGS, Debug, Overrides, RunsDir, Storage, explain_errors, use_utf8
from vader_ray.display import display_stages
from vader_ray.imports import fast_imports
from vader_ray.orchestration.sweeps.definition import SweepDefinition


def sweep_script(definition: SweepDefinition) -> None:
    """Run a sweep with the settings of the command line."""
    script = typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, context_settings=CONTEXT_SETTINGS
    )

    @script.command(help=definition.question)
    def run(  # noqa: PLR0913
        overrides: Overrides = None,
        recipe: Annotated[
            str | None,
            typer.Option(help="Name of a packaged recipe, or a YAML file. Default: the script's own."),
        ] = None,
        workers_per_trial: Annotated[int, typer.Option(help="Ray Train workers of each trial.")] = 1,
        max_concurrent: Annotated[
            int | None,
            typer.Option(help="Trials that run at once. Default: as many as the cluster has room for."),
        ] = None,
        num_trials: Annotated[
            int | None, typer.Option(help="Number of trials. Default: the script's own.")
        ] = None,
        runs_dir: RunsDir = Path("runs"),
        storage: Storage = None,
        resume: Annotated[
            bool, typer.Option(help="Continue the latest unfinished sweep with these settings.")
        ] = False,
        debug: Debug = False,
    ) -> None:
        first = f"sweep {definition.name}: importing PyTorch and MLflow"
        with explain_errors(debug=debug), display_stages(sys.stdout, first):
            with fast_imports():
                from vader_ray.orchestration.sweeps.driver import run_sweep

            run_sweep(
                definition,
                recipe,
                overrides=overrides or [],
                workers_per_trial=workers_per_trial,
                max_concurrent=max_concurrent,
                num_trials=num_trials,
                runs_dir=runs_dir,
                storage=storage,
                resume=resume,
            )

    use_utf8()
    script()
