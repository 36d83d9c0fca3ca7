"""Address of a run in MLflow; imports no MLflow, unlike its neighbours."""

from __future__ import annotations

from typing import NamedTuple

from vader_ray.uris import Uri


class MlflowRun(NamedTuple):
    """Address of a run in MLflow."""

    uri: Uri
    """Server or database, as `tracking_uri` returns it."""
    experiment_id: str
    """Id of the experiment."""
    run_id: str
    """Id of the run."""
