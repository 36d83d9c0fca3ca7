"""MLflow, configured to be silent and to fail fast; the only file that imports it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable


def quiet_environment() -> dict[str, str]:
    """Return environment variables that keep MLflow silent and its requests short."""
    return {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_LOGGING_LEVEL": "CRITICAL",
        "GIT_PYTHON_REFRESH": "quiet",
    }


for _name, _value in quiet_environment().items():
    os.environ.setdefault(_name, _value)

from mlflow import MlflowClient  # noqa: E402  (MLflow reads the environment when it is imported)
from mlflow.entities import (  # noqa: E402
    Dataset,
    DatasetInput,
    Experiment,
    InputTag,
    LoggedModel,
    LoggedModelOutput,
    Metric,
    Param,
)
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor  # noqa: E402
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_IMAGES  # noqa: E402

from vader_ray.errors import first_line  # noqa: E402
from vader_ray.uris import full_uri  # noqa: E402

logging.getLogger("urllib3.connectionpool").addFilter(
    lambda record: "/mlflow" not in record.getMessage()
)  # urllib3 logs each retry

__all__ = [
    "MLFLOW_LOGGED_IMAGES",
    "Dataset",
    "DatasetInput",
    "Experiment",
    "InputTag",
    "LoggedModel",
    "LoggedModelOutput",
    "Metric",
    "MlflowClient",
    "MlflowException",
    "Param",
    "connect",
    "quiet_environment",
    "root_cause",
    "start_system_metrics",
]

_RESTORE = "Restore it with `mlflow runs restore`, or its experiment with `mlflow experiments restore`"


def connect(uri: str) -> MlflowClient:
    """Return a client of a server or database."""
    return MlflowClient(tracking_uri=full_uri(uri))


def start_system_metrics(uri: str, run_id: str) -> Callable[[], None]:
    """Log CPU, memory, disk, network and GPU use every 10 s; return a function that stops it."""
    monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=full_uri(uri))  # type: ignore[no-untyped-call]
    monitor.start()  # type: ignore[no-untyped-call]
    finish: Callable[[], None] = monitor.finish
    return finish


def root_cause(error: BaseException) -> str:
    """Return the first line of an error's first cause, for a deleted run with its remedy.

    MLflow wraps errors several times.
    """
    while inner := error.__cause__ or error.__context__:
        error = inner
    cause = first_line(error)[:200]
    return f"{cause} {_RESTORE}" if "Current state is deleted" in cause else cause
