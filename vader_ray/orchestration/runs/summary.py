"""The outcome of a run: one object, written to ``summary.json`` when the run ends."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from vader_ray.config import is_metric_value
from vader_ray.files import write_text
from vader_ray.orchestration.runs.query_log import read_queries
from vader_ray.orchestration.tracking.pages import run_page

RunStatus = Literal["completed", "stopped", "interrupted", "failed"]

REWARD = "eval/reward/"


_GAIN = "eval/gain/"
_METRIC = "metric/"
OPTIMISTIC = (
    "These numbers are of the validation prompts, by which the adapter was chosen, so they are optimistic; "
    "prompts.test names prompts by which nothing is chosen."
)
"""Stands beside the numbers of a run without test prompts."""


class Gain(BaseModel):
    """Gain of a reward or metric: mean over prompts of the paired difference to the base model."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="constants"
    )

    mean: float
    standard_error: float
    """Standard error of the mean over the prompts; NaN with fewer than two."""
    low: float
    """Lower end of the 95 % confidence interval of the mean; NaN with fewer than two prompts."""
    high: float
    """Upper end of the interval."""


@dataclass(frozen=True)
class Results:
    """Rewards and metrics of the base model and of an adapter on one set of prompts."""

    split: Literal["test", "validation"]
    """The set of prompts."""
    before: dict[str, float]
    """Means with the base model, by logged name (``eval/…`` for both sets)."""
    after: dict[str, float]
    """Means with the adapter."""
    gains: dict[str, Gain]
    """Gains by logged name; with validation prompts only those of the rewards."""

    @property
    def rewards(self) -> list[str]:
        """Names of the rewards."""
        return list(rewards_of(self.before))

    @property
    def metrics(self) -> list[str]:
        """Logged names of the metrics."""
        return [name for name in self.before if is_metric_value(name) and name in self.after]


class RunSummary(BaseModel):
    """The outcome of a run. Metrics are means over the validation prompts, by MLflow name (``eval/…``)."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="constants"
    )

    recipe: str
    """Name of the recipe."""
    path: Path
    """Run folder."""
    status: RunStatus
    """``completed``: all steps were taken; ``stopped``: by the guard or a sweep's scheduler; ``interrupted``:
    by the user; ``failed``: by an error."""
    stop_reason: str | None
    """The guard's message if the guard stopped the run."""
    error: str | None
    """The error's message if the run failed."""
    steps: int
    """Number of optimizer steps taken."""
    num_workers: int
    """Number of workers that the recipe names."""
    reward_queries: int
    """Number of rewarded training videos."""
    denoiser_calls: int
    """Number of denoiser evaluations in training steps, both branches of classifier-free guidance counted."""
    train_seconds: float
    """Wall-clock time of the training steps, without evaluations."""
    wall_seconds: float
    """Wall-clock time of all sessions of the run, with evaluations."""
    gpu_hours: float
    """GPU time of the training steps, added up over the workers; 0 on CPUs."""
    metrics_before: dict[str, float]
    """Metrics before training."""
    metrics: dict[str, float]
    """Metrics of the last evaluation."""
    metrics_best: dict[str, float]
    """Metrics of the evaluation at ``best_step``, whose adapter is ``best_adapter``."""
    metrics_test: dict[str, float]
    """Metrics of the test: ``test/base/…`` of the base model, ``test/…`` and ``test/gain/…`` of
    ``best_adapter``. Empty without test prompts, and if the run ended early."""
    test_prompt_gains: dict[str, list[float]] = {}
    """Gain of each test prompt, by logged name (``eval/…``), in the order of ``prompts.test``: for intervals
    over several runs. Of a metric that compares videos with one another, the jackknife's pseudo-values."""
    gains: dict[str, Gain]
    """Gain of each reward (by its name) and of the objective on the validation prompts, last evaluation minus
    before training."""
    selection_metric: str
    """Metric by which the best adapter is chosen."""
    best_step: int | None
    """Step of the best adapter; 0 means that no evaluation was better than the pretrained model."""
    guard_metrics: tuple[str, ...]
    """Metrics that the guard compared; none means that the run had no guard."""
    alarms: tuple[str, ...]
    """The guard's messages, in order."""
    expected_metrics: dict[str, float]
    """Lowest value of each metric that the recipe expects after training."""
    adapter: Path
    """Adapter after the last step."""
    best_adapter: Path
    """Adapter of the best evaluation."""
    before_after: Path
    """Image of held-out videos before and after training."""
    gallery: Path
    """HTML page with held-out videos before and after training."""
    videos: tuple[Path, ...]
    """mp4 files of the held-out videos of every evaluation."""
    mlflow_run_id: str
    mlflow_experiment_id: str
    tracking_uri: str
    """MLflow server or database, without a password."""
    storage: str | None
    """URI of the folder's copy in the storage."""

    @property
    def is_usable(self) -> bool:
        """Whether the run ended with an adapter that can be compared with those of other runs."""
        return self.status in ("completed", "stopped")

    @property
    def reached(self) -> dict[str, bool]:
        """Whether the last evaluation, or the test, reached each expected metric."""
        measured = self.metrics | self.metrics_test
        return {
            name: measured.get(name, float("-inf")) >= lowest
            for name, lowest in self.expected_metrics.items()
        }

    @property
    def results(self) -> Results:
        """The numbers to state about the run: of the test prompts for ``best_adapter``; without a test, those
        of the validation prompts in the last evaluation."""
        return self.tested if self.tested is not None else self.validated(self.metrics)

    @property
    def tested(self) -> Results | None:
        """Results of ``best_adapter`` on the test prompts; None without a test."""
        if not self.metrics_test:
            return None
        base = "test/base/"
        before = {
            f"eval/{name.removeprefix(base)}": value
            for name, value in self.metrics_test.items()
            if name.startswith(base)
        }
        after = {
            name.replace("test/", "eval/", 1): value
            for name, value in self.metrics_test.items()
            if not name.startswith(base)
        }
        return Results("test", before, after, _by_logged_name(gains_of(after)))

    def validated(self, metrics: dict[str, float]) -> Results:
        """Return the results of one of the run's evaluations on validation prompts.

        Args:
            metrics: ``metrics`` or ``metrics_best``.
        """
        return Results("validation", self.metrics_before, metrics, _by_logged_name(gains_of(metrics)))

    @property
    def selected(self) -> float | None:
        """Value of the selection metric with the best adapter."""
        return self.metrics_best.get(self.selection_metric)

    @property
    def mlflow_url(self) -> str:
        """Address of the run's page in MLflow; of a database only the URI, for ``mlflow ui``."""
        if not self.tracking_uri.startswith("http"):
            return self.tracking_uri
        return run_page(self.tracking_uri, self.mlflow_experiment_id, self.mlflow_run_id)

    def queries(self) -> Any:
        """Return every reward query of the training as a pyarrow table; see `read_queries`."""
        return read_queries(self.path / "queries")

    def _repr_html_(self) -> str:
        """Return the table and the sheet of videos before and after, for notebooks."""
        from vader_ray.orchestration.runs.notebook import summary_html

        return summary_html(self)

    def write(self, path: Path) -> None:
        """Write the summary as JSON."""
        write_text(path, self.model_dump_json(indent=2) + "\n")


def rewards_of(metrics: dict[str, float]) -> dict[str, float]:
    """Return the rewards among evaluation metrics, by reward name."""
    return {name.removeprefix(REWARD): value for name, value in metrics.items() if name.startswith(REWARD)}


def gains_of(metrics: dict[str, float]) -> dict[str, Gain]:
    """Return the gains among evaluation metrics, by the name in ``eval/gain/NAME``."""
    return {
        (name := metric.removeprefix(_GAIN)): Gain(
            mean=value,
            standard_error=metrics.get(f"eval/gain_standard_error/{name}", nan),
            low=metrics.get(f"eval/gain_low/{name}", nan),
            high=metrics.get(f"eval/gain_high/{name}", nan),
        )
        for metric, value in metrics.items()
        if metric.startswith(_GAIN)
    }


def _by_logged_name(gains: dict[str, Gain]) -> dict[str, Gain]:
    def logged(name: str) -> str:
        if name.startswith(_METRIC):
            return f"eval/{name.removeprefix(_METRIC)}"
        return f"eval/{name}" if name == "objective" else f"{REWARD}{name}"

    return {logged(name): gain for name, gain in gains.items()}
