"""What a training loop reports, kept for the assertions of a test."""

from __future__ import annotations

import shutil
from pathlib import Path

from vader_ray.training.events import StepEvent


class Keeper:
    """Receives reports and keeps their checkpoints."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.reports = folder, list[StepEvent]()

    def __call__(self, report: StepEvent) -> None:
        self.reports.append(report)
        if report.checkpoint is not None:
            shutil.copytree(report.checkpoint, self.folder / str(report.step), dirs_exist_ok=report.is_test)

    def metrics(self, *names: str) -> list[list[float]]:
        return [[report.metrics[name] for name in names if name in report.metrics] for report in self.reports]


def file_contents(folder: Path) -> dict[str, bytes]:
    """Content of every file in a folder, by its path in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
