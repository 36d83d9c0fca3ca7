"""Rank 0's side of a run: everything that a `StepEvent` leaves behind in the run's folder and in MLflow."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from vader_ray.config import ExperimentConfig
from vader_ray.orchestration.runs.query_log import QueryLog
from vader_ray.orchestration.runs.run_dir import RunDir
from vader_ray.orchestration.tracking.mlflow_runs import MlflowRun, Tracker
from vader_ray.training.events import StepEvent, Video
from vader_ray.training.media import before_after_sheet, contact_sheet, gallery_html, write_mp4

MOST_ALARMS = 10
"""In the tag of a run, which MLflow limits to some thousand characters; the last are kept."""


class RunLogger:
    """Records reports in order; what it has recorded of steps beyond ``resumed_step`` it forgets or recognises."""

    def __init__(
        self,
        config: ExperimentConfig,
        folder: RunDir,
        run: MlflowRun,
        *,
        resumed_step: int,
        tell: Callable[[str], None],
    ) -> None:
        self._config, self._folder, self._tell = config, folder, tell
        self._tracker = Tracker(
            run.uri, run.run_id, folder.path, system_metrics=config.tracking.system_metrics, tell=tell
        )
        self._queries = QueryLog(folder.queries)
        self._queries.rewind(resumed_step)

    def record(self, report: StepEvent) -> None:
        """Files first, then MLflow: what MLflow shows exists. Called before the checkpoint of the step is announced."""
        self._queries.add(report.queries)
        if report.checkpoint is not None:
            self._queries.commit(report.step)
            _replace_folder(report.checkpoint / "adapter", self._folder.adapter)
            _replace_folder(report.checkpoint / "best_adapter", self._folder.best_adapter)
        if report.videos:
            self._show(report.step, report.videos)
        self._tracker.log(report.step, report.metrics)
        for alarm in report.alarms:
            self._tell(alarm)
        if report.alarms:
            self._tracker.log_tag("vader_ray.guard", "\n".join(report.alarms))
        if report.checkpoint is not None:
            self._folder.push()

    def _show(self, step: int, videos: Sequence[Video]) -> None:
        """The held-out videos of an evaluation: mp4 files, a contact sheet, and what they were before."""
        per_second = self._config.evaluation.frames_per_second
        for place, video in enumerate(videos):
            path = self._folder.videos / f"step-{step:06d}" / f"{place:02d}-{_slug(video.prompt)}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_mp4(video.frames, path, per_second)
            self._tracker.log_file(path, f"videos/step-{step:06d}")
        self._tracker.log_image(
            "eval/videos",
            step,
            contact_sheet(videos, title=f"{self._config.name}, step {step}", num_frames=4),
        )
        if step == 0:
            _save_videos(videos, self._folder.before)
            return
        before, title = (
            _load_videos(self._folder.before),
            f"{self._config.name}: before, and after {step} steps",
        )
        before_after_sheet(before, videos, title=title).save(self._folder.before_after)
        self._folder.gallery.write_text(
            gallery_html(before, videos, title=title, frames_per_second=per_second), encoding="utf-8"
        )

    def close(self, alarms: Sequence[str]) -> str | None:
        """Hand over the results and deliver what waits; a line about what MLflow did not take, unless the driver delivers it."""
        if alarms:
            self._tracker.log_tag("vader_ray.guard", "\n".join(alarms[-MOST_ALARMS:]))
        for path in (self._folder.before_after, self._folder.gallery):
            self._tracker.log_file(path)
        for adapter in (self._folder.adapter, self._folder.best_adapter):
            for path in sorted(adapter.iterdir()):
                self._tracker.log_file(path, adapter.name)
        for path in sorted(self._folder.queries.glob("*.parquet")):
            self._tracker.log_file(path, "queries")
        left = self._tracker.close()
        self._folder.push()
        return left if self._folder.home is None else None


def _slug(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60]


def _replace_folder(source: Path, target: Path) -> None:
    unfinished = target.with_name(target.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(source, unfinished)
    shutil.rmtree(target, ignore_errors=True)
    unfinished.rename(target)


def _save_videos(videos: Sequence[Video], path: Path) -> None:
    arrays = {f"frames_{place}": video.frames for place, video in enumerate(videos)}
    described = json.dumps(
        [{key: value for key, value in asdict(video).items() if key != "frames"} for video in videos]
    )
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, described=np.array(described), **arrays)
    unfinished.rename(path)


def _load_videos(path: Path) -> list[Video]:
    with np.load(path) as stored:
        described = json.loads(str(stored["described"]))
        return [Video(frames=stored[f"frames_{place}"], **words) for place, words in enumerate(described)]
