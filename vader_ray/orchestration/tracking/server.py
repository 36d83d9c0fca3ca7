"""Which MLflow a run logs to, and whether it can be used."""

from __future__ import annotations

import os
import shlex
import sqlite3
import sys
from pathlib import Path

from vader_ray.errors import UserError
from vader_ray.orchestration.tracking.mlflow_client import MlflowClient, MlflowException, root_cause

SQLITE = "sqlite:///"
URI_SCHEMES = ("http://", "https://", SQLITE, "postgresql", "mysql", "mssql", "databricks")


class TrackingError(UserError):
    """MLflow cannot be used as it is set; the message says what to change."""


def tracking_uri(uri: str | None) -> str:
    """The tracking URI for any process on this machine: `uri`, else ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` here."""
    chosen = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
    if not chosen.startswith(URI_SCHEMES):
        raise TrackingError(
            f"tracking.uri: {chosen!r} is no MLflow server or database; "
            f"give http(s)://HOST:PORT or {SQLITE}/absolute/path/mlflow.db"
        )
    return f"{SQLITE}{database_path(chosen).resolve()}" if chosen.startswith(SQLITE) else chosen


def check_server(uri: str) -> None:
    """Return when MLflow answers; on first use this makes the tables of a SQLite database (about 6 s).

    Raises:
        TrackingError: within some seconds, when the server does not answer or the database cannot be written.
    """
    try:
        if uri.startswith(SQLITE):
            _check_writable(database_path(uri))
        MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
    except (MlflowException, OSError, sqlite3.Error) as error:
        raise unusable(uri, error) from None


def database_path(uri: str) -> Path:
    """The file of a SQLite URI."""
    return Path(uri.removeprefix(SQLITE).partition("?")[0])


def _check_writable(database: Path) -> None:
    database.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(database, timeout=5.0)
    try:
        connection.execute("BEGIN IMMEDIATE")
    finally:
        connection.close()


def unusable(uri: str, error: BaseException) -> TrackingError:
    """The error for a person to whom MLflow gave `error`."""
    remedy = "make it writable" if uri.startswith(SQLITE) else "start it"
    return TrackingError(
        f"tracking.uri: MLflow at {uri} does not work ({root_cause(error)}); {remedy}, or choose another one"
    )


def how_to_open(uri: str) -> str:
    """Return the address of MLflow's pages, or for a database the command that serves them."""
    if not uri.startswith(SQLITE):
        return uri
    return f"{Path(sys.executable).parent / 'mlflow'} ui --backend-store-uri {shlex.quote(uri)}"
