"""The finished run of a saved adapter: its recipe, its evaluation with this adapter, and its videos."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vader_ray.config.yaml_text import parse_yaml
from vader_ray.errors import UserError
from vader_ray.orchestration.runs.run_dir import RunDir
from vader_ray.orchestration.runs.summary import Results, RunSummary
from vader_ray.orchestration.tracking.address import LISTING
from vader_ray.paths import SHAPES_PREFIX
from vader_ray.training.events import Video
from vader_ray.training.media import read_mp4
from vader_ray.weights import HUB_ID

RECIPE = "recipe.yaml"
"""File of a run's folder and of a repository."""
_SECOND = "transformer_2"
"""Second denoiser of a pipeline, and the folder of its part of an adapter."""
_PRIVATE = ("tracking", "runtime", "checkpoint")
"""Sections of a recipe about machines, without effect on the adapter."""


@dataclass(frozen=True)
class FinishedRun:
    """A run with a summary, and which of its two adapters is meant."""

    folder: RunDir
    summary: RunSummary
    recipe: dict[str, Any]
    """The resolved recipe, without its sections about machines."""
    is_best: bool
    """Whether the adapter is ``best_adapter/``, else that of the last step."""

    @property
    def base_model(self) -> str:
        """Weights of the recipe's model; of a local folder only the name, as its path is private."""
        weights = str(self.recipe["model"]["weights"])
        is_public = weights.startswith(SHAPES_PREFIX) or HUB_ID.fullmatch(weights)
        return weights if is_public else Path(weights).name

    @property
    def networks(self) -> list[str]:
        """Networks that have the adapter, by their names in the pipeline; the first denoiser may be empty."""
        if chosen := self.recipe["adapter"].get("networks"):
            return list(chosen)
        adapter = self.folder.best_adapter if self.is_best else self.folder.adapter
        return ["", _SECOND] if (adapter / _SECOND).is_dir() else [""]

    @property
    def step(self) -> int:
        """Step after which the adapter was saved."""
        return (self.summary.best_step or 0) if self.is_best else self.summary.steps

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the evaluation on validation prompts with the adapter."""
        return self.summary.metrics_best if self.is_best else self.summary.metrics

    @property
    def results(self) -> Results:
        """Results of the adapter: on the test prompts if it was tested, else on the validation prompts."""
        tested = self.summary.tested if self.is_best else None
        return tested or self.summary.validated(self.metrics)

    def videos(self, step: int) -> list[tuple[Path, Video]]:
        """Return the held-out videos of a step with their mp4 files; none if the step has no listing."""
        folder = self.folder.videos / f"step-{step:06d}"
        if not (folder / LISTING).is_file():
            return []
        listed = json.loads((folder / LISTING).read_text(encoding="utf-8"))
        return [
            (
                folder / each["file"],
                Video(
                    each["prompt"], 0, each["scores"], read_mp4(folder / each["file"])[: each["num_frames"]]
                ),
            )
            for each in listed
        ]


def recipe_of_adapter(adapter: Path) -> dict[str, Any]:
    """Return the recipe of an adapter's run, from its folder or the hub's repository; empty without one."""
    for path in (adapter / RECIPE, adapter.resolve().parent / RECIPE):
        if path.is_file():
            recipe = parse_yaml(path.read_text(encoding="utf-8"))
            return recipe if isinstance(recipe, dict) else {}
    return {}


def run_of_adapter(adapter: Path) -> FinishedRun | None:
    """Return the run in whose folder a saved adapter is; None if it is in another folder.

    Raises:
        UserError: the run has not ended, or its files are damaged.
    """
    folder = RunDir(adapter.resolve().parent)
    if not folder.metadata.is_file() or adapter.resolve() not in (folder.adapter, folder.best_adapter):
        return None
    summary = folder.read_summary()
    if summary is None:
        raise UserError(
            f"the run {folder.name} has not ended; continue it with --resume, or wait for its end"
        )
    return finished_run(folder, summary, adapter.resolve())


def finished_run(folder: RunDir, summary: RunSummary, adapter: Path) -> FinishedRun:
    """Return a run with its summary and one of its two adapters."""
    kept = {name: value for name, value in recipe_of_adapter(adapter).items() if name not in _PRIVATE}
    return FinishedRun(folder, summary, kept, adapter == folder.best_adapter)
