"""Address of the MLflow server or database, and a check that it can be used."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from vader_ray.errors import UserError
from vader_ray.orchestration.tracking.mlflow_client import MlflowClient, MlflowException, root_cause

SQLITE = "sqlite:///"
URI_SCHEMES = ("http://", "https://", SQLITE, "postgresql", "mysql", "mssql", "databricks")


def tracking_uri(uri: str | None) -> str:
    """Return the tracking URI: `uri`, else ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` in the working
    directory.

    The path of a SQLite database becomes absolute, so that it is valid in every process of this machine.
    """
    chosen = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
    if not chosen.startswith(URI_SCHEMES):
        raise UserError(
            f"tracking.uri: {chosen!r} is not an MLflow server or database; "
            f"give http(s)://HOST:PORT or {SQLITE}/absolute/path/mlflow.db"
        )
    return f"{SQLITE}{database_path(chosen).resolve()}" if chosen.startswith(SQLITE) else chosen


def check_server(uri: str) -> None:
    """Check that MLflow works; the first use creates the tables of a SQLite database (about 6 s).

    Raises:
        UserError: the driver of the database is not installed, the server does not respond within seconds, or
            the database cannot be written.
    """
    try:
        if uri.startswith(SQLITE):
            _check_writable(database_path(uri))
        MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
    except ModuleNotFoundError as error:
        raise UserError(
            f"tracking.uri: {uri.partition(':')[0]} databases need the Python module {error.name!r}, which "
            "is not installed; install its package, or choose an MLflow server"
        ) from None
    except (MlflowException, OSError, ValueError, sqlite3.Error, SQLAlchemyError) as error:
        raise unusable(uri, error) from None


def database_path(uri: str) -> Path:
    """Return the file of a SQLite URI."""
    return Path(uri.removeprefix(SQLITE).partition("?")[0])


def _check_writable(database: Path) -> None:
    if database.exists() and not database.is_file():
        raise OSError(f"{database} is no regular file")
    database.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(database, timeout=5.0)
    try:
        connection.execute("BEGIN IMMEDIATE")
    finally:
        connection.close()


def unusable(uri: str, error: BaseException) -> UserError:
    """Return the error for the user in place of an error of MLflow."""
    remedy = "make it writable" if uri.startswith(SQLITE) else "start it"
    return UserError(
        f"tracking.uri: MLflow at {uri} does not work ({root_cause(error)}); {remedy}, or choose another one"
    )
