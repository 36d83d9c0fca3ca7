"""The outcome of a run: one object, written to ``summary.json`` when the run ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from vader_ray.files import write_text
from vader_ray.orchestration.runs.query_log import read_queries
from vader_ray.orchestration.tracking.pages import run_page

RunStatus = Literal["completed", "stopped", "interrupted", "failed"]

REWARD = "eval/reward/"


class Gain(BaseModel):
    """Gain of a metric on held-out videos: the paired difference, last evaluation minus before training."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    mean: float
    standard_error: float
    """Standard error of the mean over the held-out prompts; NaN with fewer than two."""


class RunSummary(BaseModel):
    """The outcome of a run. Metrics are means over the held-out videos, by MLflow name (``eval/…``)."""

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
    gains: dict[str, Gain]
    """Gain of each reward (by its name) and of the objective."""
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
        """Whether the last evaluation reached each expected metric."""
        return {
            name: self.metrics.get(name, float("-inf")) >= lowest
            for name, lowest in self.expected_metrics.items()
        }

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
    """Return the held-out rewards among evaluation metrics, by reward name."""
    return {name.removeprefix(REWARD): value for name, value in metrics.items() if name.startswith(REWARD)}
