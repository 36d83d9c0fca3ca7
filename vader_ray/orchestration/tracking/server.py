"""Address of the MLflow server or database, and a check that it can be used."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from vader_ray.errors import UserError
from vader_ray.orchestration.tracking.mlflow_client import MlflowException, connect, root_cause
from vader_ray.uris import Uri, is_redacted, redact, without_user

SQLITE = "sqlite:///"
_CREDENTIALS = ({"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"}, {"MLFLOW_TRACKING_TOKEN"})
URI_SCHEMES = ("http://", "https://", SQLITE, "postgresql", "mysql", "mssql", "databricks")


def tracking_uri(uri: str | None) -> Uri:
    """Return the tracking URI: `uri`, else ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` in the working
    directory.

    The path of a SQLite database becomes absolute, so that it is valid in every process of this machine. The
    password that a URI from a file of a run lacks is taken from the environment.

    Raises:
        UserError: the URI is none of MLflow's, or its password is nowhere.
    """
    chosen = Uri(uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db")
    if not chosen.startswith(URI_SCHEMES):
        raise UserError(
            f"tracking.uri: {chosen!r} is not an MLflow server or database; "
            f"give http(s)://HOST:PORT or {SQLITE}/absolute/path/mlflow.db"
        )
    if chosen.startswith(SQLITE):
        return Uri(f"{SQLITE}{database_path(chosen).resolve()}")
    return _with_password(chosen) if is_redacted(chosen) else chosen


def _with_password(uri: Uri) -> Uri:
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    if redact(given) == redact(uri) and not is_redacted(given):
        return Uri(given)
    is_server = uri.startswith("http")
    if is_server and any(names <= os.environ.keys() for names in _CREDENTIALS):
        return Uri(without_user(uri))
    more = ", or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" if is_server else ""
    raise UserError(
        f"tracking.uri: {uri} lacks its password, which no file of a run contains; set "
        f"MLFLOW_TRACKING_URI to the whole URI{more}"
    )


def check_server(uri: str) -> None:
    """Check that MLflow works; the first use creates the tables of a SQLite database (about 6 s).

    Raises:
        UserError: the driver of the database is not installed, the server does not respond within seconds, or
            the database cannot be written.
    """
    try:
        if uri.startswith(SQLITE):
            _check_writable(database_path(uri))
        connect(uri).search_experiments(max_results=1)
    except ModuleNotFoundError as error:
        raise UserError(
            f"tracking.uri: {uri.partition(':')[0]} databases need the Python module {error.name!r}, which "
            "is not installed; install its package, or choose an MLflow server"
        ) from None
    except (MlflowException, OSError, ValueError, sqlite3.Error, SQLAlchemyError) as error:
        raise unusable(uri, error) from None


def check_before_start(uri: str) -> None:
    """Check what takes no seconds: that a SQLite database can be written, or that a server works.

    Raises:
        UserError: as in `check_server`.
    """
    if not uri.startswith(SQLITE):
        check_server(uri)
        return
    try:
        _check_writable(database_path(uri))
    except (OSError, sqlite3.Error) as error:
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
    cause = root_cause(error)
    remedy = "make it writable" if uri.startswith(SQLITE) else "start it"
    if "error code 401" in cause:
        remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to those of a user of this server"
    return UserError(
        f"tracking.uri: MLflow at {uri} does not work ({cause}); {remedy}, or choose another one"
    )
