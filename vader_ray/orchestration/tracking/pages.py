"""Addresses and layout of MLflow's pages for runs of this package."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

from vader_ray.uris import redact, without_user

CHARTS_VIEW = "vader_ray"
"""Key of the shared view, stored in a tag of the experiment, that holds the order of the charts."""
CHART_SECTIONS = {
    **dict.fromkeys(
        ("eval/reward", "train/reward", "train", "eval", "eval/caption_accuracy", "eval/gain"), True
    ),
    **dict.fromkeys(
        ("eval/gain_low", "eval/gain_high", "eval/gain_standard_error", "eval/effect_size"), False
    ),
    **dict.fromkeys(("test/reward", "test/base/reward", "test", "test/base", "test/gain"), False),
    "guard": True,
    **dict.fromkeys(
        (f"guard/{each}{room}" for each in ("fall", "p_value", "beyond") for room in ("", "/reward")), False
    ),
    **dict.fromkeys(("train/gradient_norm", "time", "memory", "cost"), True),
}
"""Sections of the chart page, first to last, and whether each is unfolded.

A metric belongs to the section of its name up to the last slash. Without a view, MLflow sorts sections by
name.
"""

_TRAINING = "workflowType=machine_learning"
"""Query that selects the pages of model training. MLflow 3.17 opens its GenAI pages in a new browser,
whatever the experiment's kind."""
_UI_ADDRESS = "http://127.0.0.1:5000"
"""Address of ``mlflow ui`` with default options."""


def charts_page(address: str, experiment_id: str) -> str:
    """Return the URL of an experiment's runs with their charts in the order of `CHART_SECTIONS`."""
    query = f"{_TRAINING}&compareRunsMode=CHART&viewStateShareKey={CHARTS_VIEW}"
    return f"{without_user(address).rstrip('/')}/#/experiments/{experiment_id}/runs?{query}"


def run_page(address: str, experiment_id: str, run_id: str, tab: str = "") -> str:
    """Return the URL of a run's page, or of one of its tabs such as ``model-metrics``."""
    return (
        f"{without_user(address).rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}/{tab}?{_TRAINING}"
    )


def pages_address(uri: str) -> str | None:
    """Return the address of MLflow's pages: the server's own, or that of ``mlflow ui`` with default options.

    None for a database that only a server of its own shows.
    """
    return uri if uri.startswith("http") else _UI_ADDRESS if uri.startswith("sqlite:") else None


def how_to_open(uri: str, experiment_id: str) -> str:
    """Return the URL of an experiment's charts.

    For a SQLite database, after a line with the command that serves it.
    """
    if uri.startswith("sqlite:"):
        command = f"{Path(sys.executable).parent / 'mlflow'} ui --backend-store-uri {shlex.quote(uri)}"
        return f"{command}\n{charts_page(_UI_ADDRESS, experiment_id)}"
    return charts_page(uri, experiment_id) if uri.startswith("http") else redact(uri)


def charts_view() -> str:
    """Return the view of `CHART_SECTIONS` as MLflow's "Share" button stores it.

    MLflow itself adds each chart to its section.
    """
    sections = [
        {"uuid": name, "name": name, "display": unfolded, "isReordered": False, "isGenerated": True}
        for name, unfolded in CHART_SECTIONS.items()
    ]
    return json.dumps({"compareRunCharts": [], "compareRunSections": sections, "isAccordionReordered": True})
