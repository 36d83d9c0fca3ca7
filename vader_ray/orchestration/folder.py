"""The folder of a run: what is in it, whose it is, and whether it may be continued."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from vader_ray.config import ConfigError, ExperimentConfig, flatten


@dataclass(frozen=True, slots=True)
class RunFolder:
    """``runs/NAME``; every path is absolute, for workers have another working directory."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def run(self) -> Path:
        """Identity of the recipe and of the MLflow run."""
        return self.path / "run.json"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def state(self) -> Path:
        """What the reports of a trial have told so far."""
        return self.path / "state.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def queries(self) -> Path:
        return self.path / "queries"

    @property
    def videos(self) -> Path:
        return self.path / "videos"

    @property
    def before(self) -> Path:
        """Frames of the shown held-out videos before training, for the before/after sheet."""
        return self.videos / "before.npz"

    @property
    def adapter(self) -> Path:
        """The adapter after the last step."""
        return self.path / "adapter"

    @property
    def best_adapter(self) -> Path:
        """The adapter of the best evaluation."""
        return self.path / "best_adapter"

    @property
    def before_after(self) -> Path:
        return self.path / "before_after.png"

    @property
    def gallery(self) -> Path:
        return self.path / "gallery.html"

    @property
    def ray_log(self) -> Path:
        """What Ray and the workers wrote while the terminal stayed quiet."""
        return self.path / "ray.log"

    def read_run(self) -> dict[str, Any]:
        """What `open_folder` and the driver wrote down, empty for a new run."""
        return json.loads(self.run.read_text(encoding="utf-8")) if self.run.exists() else {}

    def is_complete(self, num_steps: int) -> bool:
        """Whether a run has ended here after so many steps."""
        if not self.summary.exists():
            return False
        summary = json.loads(self.summary.read_text(encoding="utf-8"))
        return bool(summary["status"] == "completed" and summary["steps"] >= num_steps)


def open_folder(config: ExperimentConfig, root: Path, run_name: str | None, *, resume: bool) -> RunFolder:
    """The folder of a new run, or of one that the same recipe began.

    Without a name, a new run is called by its recipe and the time, and ``resume`` finds the latest run of the recipe.

    Raises:
        ConfigError: there is nothing to resume, the name belongs to another recipe, or the folder cannot be written.
    """
    root = root.expanduser().resolve()
    name = run_name or (_latest(config, root) if resume else f"{config.name}-{datetime.now():%Y%m%d-%H%M%S}")
    folder = RunFolder(root / name)
    known = folder.read_run()
    if resume and not known:
        raise ConfigError(f"there is no run {name!r} in {root} to resume; start it without --resume")
    if known and (different := _differences(known["identity"], config)):
        raise ConfigError(
            f"the run {name!r} was started with other settings ({', '.join(different[:3])}); "
            "choose another --run-name, or repeat its settings"
        )
    _create(folder, config)
    return folder


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a JSON file that appears whole or not at all."""
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def _create(folder: RunFolder, config: ExperimentConfig) -> None:
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.recipe.write_text(
            yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
    except OSError as error:
        raise ConfigError(f"the run folder {folder.path} cannot be written ({error.strerror}); give another --runs-dir") from None


def _latest(config: ExperimentConfig, root: Path) -> str:
    """The most recent unfinished run of the recipe with the same settings."""
    folders = sorted(root.glob(f"{config.name}-*/run.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for folder in (RunFolder(path.parent) for path in folders):
        if not folder.is_complete(config.num_steps) and not _differences(folder.read_run()["identity"], config):
            return folder.name
    raise ConfigError(f"there is no unfinished run of {config.name!r} with these settings in {root}; start one without --resume")


def _differences(identity: dict[str, Any], config: ExperimentConfig) -> list[str]:
    """Dotted paths of the settings that decide a result and differ."""
    theirs, mine = flatten(identity), flatten(json.loads(json.dumps(config.identity())))
    return sorted(path for path in theirs.keys() | mine.keys() if theirs.get(path) != mine.get(path))
