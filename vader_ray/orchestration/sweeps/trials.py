"""The trials of a sweep: each with its recipe, its folder and its MLflow run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from vader_ray.config import ExperimentConfig
from vader_ray.config.auto import auto_fields
from vader_ray.errors import UserError
from vader_ray.orchestration.runs.run_dir import RunDir, open_run_dir
from vader_ray.orchestration.runs.storage import join
from vader_ray.orchestration.runs.summary import RunStatus, RunSummary
from vader_ray.orchestration.sweeps.definition import (
    BaseRecipe,
    SweepDefinition,
    Values,
    overrides_of,
    trial_name,
)
from vader_ray.orchestration.tracking import mlflow_runs
from vader_ray.orchestration.tracking.address import COMMAND_TAG, MlflowRun
from vader_ray.orchestration.tracking.environment import command_line
from vader_ray.training.resolve import resolve_names

TrialStatus = RunStatus | Literal["unfinished"]


@dataclass(slots=True)
class Trial:
    """One member of a sweep."""

    values: Values
    config: ExperimentConfig | None = None
    """Its recipe; None if its settings cannot work."""
    error: str = ""
    """Why its settings cannot work."""
    folder: RunDir | None = None
    storage: str | None = None
    """URI of its folder's copy, if the sweep has a storage."""
    mlflow_run: MlflowRun | None = None

    @property
    def name(self) -> str:
        return trial_name(self.values)

    @property
    def location(self) -> dict[str, str | None]:
        """Its folder, as arguments of `run_trial`."""
        assert self.folder is not None
        return {"folder": str(self.folder.path), "storage": self.storage}

    @property
    def summary(self) -> RunSummary | None:
        """Its outcome, None if there is none yet."""
        return self.folder.read_summary() if self.folder is not None else None

    @property
    def status(self) -> TrialStatus:
        if self.config is None:
            return "failed"
        return summary.status if (summary := self.summary) is not None else "unfinished"

    @property
    def score(self) -> float | None:
        """Selection metric at its last evaluation, None if the trial did not end or failed."""
        summary = self.summary
        if summary is None or not summary.is_usable:
            return None
        return summary.metrics[summary.selection_metric]

    def is_over(self) -> bool:
        """Return whether the trial needs no further work."""
        if self.config is None or self.folder is None:
            return True
        return self.status == "stopped" or self.folder.is_complete(self.config.num_steps)

    def open_mlflow_run(self, sweep: str, parent: MlflowRun) -> None:
        """Open its child run in MLflow: a new one, or that of an earlier session."""
        assert self.config is not None
        assert self.folder is not None
        tags = {name: str(value) for name, value in self.values.items()}
        self.folder.summary.unlink(missing_ok=True)  # of a failed attempt
        self.mlflow_run = mlflow_runs.start_run(
            self.config,
            self.name,
            self.folder.recipe.read_text(encoding="utf-8"),
            parent_run_id=parent.run_id,
            tags=tags | {"sweep": sweep, "trial": self.name, COMMAND_TAG: command_line()},
            resume_run_id=self.folder.read_metadata().get("mlflow_run_id"),
        )
        self.folder.write_metadata(self.config, self.mlflow_run)


@dataclass
class TrialSet:
    """All trials of a sweep in the order in which they were made, recorded in the sweep's folder."""

    definition: SweepDefinition
    recipe: BaseRecipe
    config: ExperimentConfig
    """The base recipe under the sweep's name."""
    folder: RunDir
    parent: MlflowRun
    trials: list[Trial] = field(default_factory=list)

    def add(self, *new: Values) -> Trial:
        """Add trials, each with recipe and folder or the reason why it cannot run; return the last one."""
        self.trials += [self.prepare(values) for values in new]
        self.record()
        return self.trials[-1]

    def record(self, *, completed: bool = False) -> None:
        """Write the values of all trials to the sweep's folder, and whether the sweep has ended."""
        values = [trial.values for trial in self.trials]
        self.folder.write_metadata(self.config, self.parent, trials=values, completed=completed)

    def prepare(self, values: Values, more: Mapping[str, Any] = MappingProxyType({})) -> Trial:
        """Return a trial with recipe and folder, or with the reason why its settings cannot work.

        Args:
            more: further fields of the recipe (dotted) that it sets.
        """
        settings = overrides_of(self.definition, values, self.recipe.load(), more)
        try:
            config = resolve_names(self.recipe.load(settings), self.recipe.folder)
        except UserError as error:
            return Trial(values, error=str(error))
        if left := auto_fields(config):
            return Trial(
                values,
                error=f"{', '.join(left)}: trials can only be compared if all have the same settings; "
                "name a setting instead of auto",
            )
        name = trial_name(values)
        folder = open_run_dir(config, self.folder.path, name)
        storage = join(self.folder.storage, name) if self.folder.storage is not None else None
        return Trial(values, config, folder=folder, storage=storage)
