"""Address of a run in MLflow and names of what it holds; imports no MLflow, unlike its neighbours."""

from __future__ import annotations

from typing import NamedTuple

from vader_ray.uris import Uri

COMMAND_TAG, UNITS_TAG = "vader_ray.command", "vader_ray.units"
"""Tags with the command that started a run or sweep, and with a JSON table of units by logged name."""
LISTING = "videos.json"
"""File beside the mp4 files of a step: prompt, scores and number of frames of each."""


class MlflowRun(NamedTuple):
    """Address of a run in MLflow."""

    uri: Uri
    """Server or database, as `tracking_uri` returns it."""
    experiment_id: str
    """Id of the experiment."""
    run_id: str
    """Id of the run."""
