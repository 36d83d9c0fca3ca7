"""The trials of a sweep: each with its recipe, its folder and its run in MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vader_ray.config import ConfigError, ExperimentConfig, load
from vader_ray.config.auto import auto_fields
from vader_ray.orchestration.runs.launch import read_summary, remember, resolve_names
from vader_ray.orchestration.runs.run_dir import RunDir, open_run_dir
from vader_ray.orchestration.runs.storage import join
from vader_ray.orchestration.sweeps.definition import SweepDefinition, Values, overrides_of, trial_name
from vader_ray.orchestration.tracking import mlflow_runs


@dataclass(slots=True)
class Trial:
    """One member of a sweep."""

    values: Values
    config: ExperimentConfig | None = None
    error: str = ""
    """Why its settings cannot work, when there is no recipe."""
    folder: RunDir | None = None
    storage: str | None = None
    """Where its checkpoints and a copy of its folder are kept, when that is not this machine."""
    run: mlflow_runs.MlflowRun | None = None

    @property
    def name(self) -> str:
        return trial_name(self.values)

    @property
    def place(self) -> dict[str, str | None]:
        """Its folder, as `run_trial` takes it."""
        assert self.folder is not None
        return {"folder": str(self.folder.path), "storage": self.storage}

    @property
    def status(self) -> str:
        """``completed``, ``stopped`` by the scheduler, ``failed``, or ``unfinished``."""
        if self.config is None or self.folder is None:
            return "failed"
        return str(read_summary(self.folder)["status"]) if self.folder.summary.exists() else "unfinished"

    @property
    def score(self) -> float | None:
        """What its last evaluation gave in the metric by which the recipe chooses, None where there is none."""
        if self.folder is None or self.status not in ("completed", "stopped"):
            return None
        return float(read_summary(self.folder)["selection"]["after"])

    def is_over(self) -> bool:
        """Whether nothing is left to do."""
        if self.config is None or self.folder is None:
            return True
        return self.status == "stopped" or self.folder.is_complete(self.config.num_steps)

    def open_run(self, sweep: str, parent: mlflow_runs.MlflowRun) -> None:
        """Its child run in MLflow: a new one, or that of an earlier session."""
        assert self.config is not None
        assert self.folder is not None
        tags = {name: str(value) for name, value in self.values.items()} | {
            "sweep": sweep,
            "trial": self.name,
        }
        self.folder.summary.unlink(missing_ok=True)  # of a failed attempt
        self.run = mlflow_runs.start_run(
            self.config,
            self.name,
            self.folder.recipe.read_text(encoding="utf-8"),
            parent_run_id=parent.run_id,
            tags=tags,
            resume_run_id=self.folder.read_run().get("mlflow_run_id"),
        )
        remember(self.folder, self.config, self.run)


@dataclass
class TrialSet:
    """All trials of a sweep, in the order in which they were made; its folder remembers them."""

    sweep: SweepDefinition
    base: ExperimentConfig
    """The recipe that the trials change, as the sweep's own run has it."""
    loaded: ExperimentConfig
    """The same with its own name."""
    source: str
    overrides: Sequence[str]
    folder: RunDir
    parent: mlflow_runs.MlflowRun
    trials: list[Trial] = field(default_factory=list)

    def add(self, *new: Values) -> Trial:
        """More of them, with recipe and folder; those whose settings cannot work keep the reason instead. The last one."""
        self.trials += [self.prepare(values) for values in new]
        remember(self.folder, self.base, self.parent, trials=[trial.values for trial in self.trials])
        return self.trials[-1]

    def prepare(self, values: Values, more: Mapping[str, Any] = MappingProxyType({})) -> Trial:
        """A trial with recipe and folder, or with the reason why its settings cannot work.

        Args:
            more: further fields of the recipe (dotted) that it sets.
        """
        where = Path(self.source).resolve().parent if Path(self.source).is_file() else None
        settings = overrides_of(self.sweep, values, self.loaded, more)
        try:
            config = resolve_names(load(self.source, [*self.overrides, *settings]), where)
        except ConfigError as error:
            return Trial(values, error=str(error))
        if left := auto_fields(config):
            return Trial(
                values,
                error=f"{', '.join(left)}: a sweep chooses nothing by itself, so that its trials can be compared; "
                "name a setting instead of auto",
            )
        name = trial_name(values)
        storage = join(self.folder.storage, name) if self.folder.storage is not None else None
        return Trial(values, config, folder=open_run_dir(config, self.folder.path, name), storage=storage)
