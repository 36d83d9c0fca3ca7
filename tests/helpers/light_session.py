"""A session of a run without Ray: the code of driver and worker in one forked process that can be killed.

The fork server has imported everything and runs nothing, so that a session costs its own work only.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import typer

from tests.helpers.local_run import run_locally
from tests.helpers.runs import open_here
from vader_ray.config import validate
from vader_ray.console import explain_errors
from vader_ray.orchestration.runs.finish import EarlyEnd, finish_run
from vader_ray.orchestration.runs.run_dir import claim_run_dir

LIBRARIES = ("PIL", "alembic", "diffusers", "mlflow", "peft", "pyarrow", "sqlalchemy", "transformers")
PRELOADED = tuple(f"{name}." for name in (*LIBRARIES, "tests.helpers", "vader_ray"))
"""Beginnings of the names of modules that a session would take seconds to import."""


def prepare(document: dict[str, Any], runs: Path, name: str) -> None:
    """Do a run in a new process, and let the fork server import the modules that this run has needed."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_first, args=(document, runs, name, sender))
    process.start()
    modules: list[str] = receiver.recv()
    process.join()
    multiprocessing.get_context("forkserver").set_forkserver_preload(modules)


def _first(document: dict[str, Any], runs: Path, name: str, modules: Connection) -> None:
    _train(document, runs, name)
    modules.send([name for name in sys.modules if name.startswith(PRELOADED)])


def start_session(document: dict[str, Any], runs: Path, name: str, log: Path) -> ForkServerProcess:
    """Start a run, or continue it, in a process of its own; its output replaces that in `log`.

    Args:
        document: the recipe.
    """
    log.write_text("")
    process = multiprocessing.get_context("forkserver").Process(
        target=_session, args=(document, runs, name, log)
    )
    process.start()
    return process


def _session(document: dict[str, Any], runs: Path, name: str, log: Path) -> None:
    """Do what the driver and its worker do, and end as the command line does."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    try:
        with explain_errors(debug=False):
            _train(document, runs, name)
    except typer.Exit as end:
        sys.exit(end.exit_code)


def _train(document: dict[str, Any], runs: Path, name: str) -> None:
    config = validate(document)
    with claim_run_dir(config, runs, name, resume=False) as claimed:
        if claimed.is_complete(config.num_steps):
            return
        folder, run = open_here(config, runs, name)
        with EarlyEnd(config, folder, run).recorded():
            run_locally(config, folder, run)
        finish_run(config, folder, run)
