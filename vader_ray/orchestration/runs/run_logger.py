"""Rank 0's logger: write each step of a run to its folder and to MLflow."""

from __future__ import annotations

import json
import re
import shutil
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from vader_ray.config import ExperimentConfig
from vader_ray.errors import first_line
from vader_ray.files import atomic_write, write_text
from vader_ray.orchestration.runs.query_log import QueryLog
from vader_ray.orchestration.runs.retry import retry_writes
from vader_ray.orchestration.runs.run_dir import RunDir
from vader_ray.orchestration.tracking.mlflow_runs import MlflowRun
from vader_ray.orchestration.tracking.tracker import Tracker
from vader_ray.training.checkpoint import State
from vader_ray.training.events import StepEvent, Video
from vader_ray.training.media import before_after_sheet, contact_sheet, gallery_html, read_mp4, write_mp4

MAX_ALARMS = 10
"""Alarms in a tag of the run, whose length MLflow limits; the last ones are kept."""


class RunLogger:
    """Log steps in order, each once, even if an earlier process has logged steps after `resumed_step`."""

    def __init__(
        self,
        config: ExperimentConfig,
        folder: RunDir,
        mlflow_run: MlflowRun,
        *,
        resumed_step: int,
        log: Callable[[str], None],
    ) -> None:
        self._config, self._folder, self._log = config, folder, log
        self._has_push_failed = False
        self._tracker = Tracker(
            mlflow_run.uri,
            mlflow_run.run_id,
            folder.path,
            system_metrics=config.tracking.system_metrics,
            on_message=log,
        )
        self._queries = QueryLog(folder.queries)
        self._queries.rewind(resumed_step)

    def record(self, event: StepEvent) -> None:
        """Log a step: files first, so that every file that MLflow refers to exists.

        Call it before the step's checkpoint is handed over; a run that is killed and continued then has each
        step once.
        """
        self._queries.add(event.queries)
        if event.checkpoint is not None:
            checkpoint = event.checkpoint
            self._retry(lambda: self._queries.commit(event.step))
            self._retry(lambda: _copy_folder(checkpoint / "adapter", self._folder.adapter))
            self._retry(lambda: _copy_folder(checkpoint / "best_adapter", self._folder.best_adapter))
        if event.videos:
            self._retry(lambda: self._write_videos(event))
            self._track_videos(event)
        self._tracker.log(event.step, event.metrics)
        for alarm in event.alarms:
            self._log(alarm)
        if event.alarms:
            self._tracker.log_tag("vader_ray.guard", "\n".join(event.alarms))
        self._retry(lambda: self._folder.write_state(event.state))
        if event.step == self._config.num_steps or event.state.stopped:
            self._retry(self._folder.push)
        elif event.checkpoint is not None or self._config.selection_metric() in event.metrics:
            self._push()

    def _retry(self, write: Callable[[], None]) -> None:
        minutes = self._config.checkpoint.retry_minutes
        retry_writes(write, self._folder.storage or self._folder.path, minutes=minutes, log=self._log)

    def _push(self) -> None:
        """Copy local changes to the storage; what it does not take is copied by the next call."""
        try:
            self._folder.push()
        except OSError as error:
            if not self._has_push_failed:
                self._log(
                    f"{self._folder.storage} did not take the run's files ({first_line(error)}); "
                    "training continues, and they are sent again after the next checkpoint or evaluation"
                )
            self._has_push_failed = True
        else:
            self._has_push_failed = False

    def _write_videos(self, event: StepEvent) -> None:
        """Write an evaluation's held-out videos: mp4 files and a comparison with step 0."""
        step, videos = event.step, event.videos
        frames_per_second = self._config.evaluation.frames_per_second
        for index, video in enumerate(videos):
            path = self._mp4(step, index, video)
            write_mp4(video.frames, path, frames_per_second)
        if step == 0:
            _save_videos(videos, self._folder.before)
            return
        before = self._videos_before(videos, event.state)
        title = f"{self._config.name}: before, and after {step} steps"
        before_after_sheet(before, videos, title=title).save(self._folder.before_after)
        page = gallery_html(before, videos, title=title, frames_per_second=frames_per_second)
        write_text(self._folder.gallery, page)

    def _track_videos(self, event: StepEvent) -> None:
        """Log an evaluation's mp4 files and their contact sheet."""
        step, videos = event.step, event.videos
        for index, video in enumerate(videos):
            self._tracker.log_file(self._mp4(step, index, video), f"videos/step-{step:06d}")
        sheet = contact_sheet(videos, title=f"{self._config.name}, step {step}", num_frames=4)
        self._tracker.log_image("eval/videos", step, sheet)

    def _mp4(self, step: int, index: int, video: Video) -> Path:
        return self._folder.videos / f"step-{step:06d}" / f"{index:02d}-{_slug(video.prompt)}.mp4"

    def _videos_before(self, videos: Sequence[Video], state: State) -> list[Video]:
        """Return the videos before training; if their file is damaged, rebuild it from their mp4 files."""
        path = self._folder.before
        try:
            return _load_videos(path)
        except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error) as error:
            self._log(f"{path} is damaged ({first_line(error)}); it is rebuilt from the mp4 files of step 0")
        rebuilt = [
            Video(
                prompt=video.prompt,
                noise_seed=video.noise_seed,
                scores={name: values[index] for name, values in state.before.items() if name in video.scores},
                frames=read_mp4(self._mp4(0, index, video)),
            )
            for index, video in enumerate(videos)
        ]
        _save_videos(rebuilt, path)
        return rebuilt

    def close(self, alarms: Sequence[str]) -> str | None:
        """Log the results and deliver everything that waits for MLflow.

        Returns:
            A message about undelivered results, unless the driver will deliver them.
        """
        if alarms:
            self._tracker.log_tag("vader_ray.guard", "\n".join(alarms[-MAX_ALARMS:]))
        for path in (self._folder.before_after, self._folder.gallery):
            self._tracker.log_file(path)
        for adapter in (self._folder.adapter, self._folder.best_adapter):
            for path in sorted(adapter.iterdir()):
                self._tracker.log_file(path, adapter.name)
        for path in sorted(self._folder.queries.glob("*.parquet")):
            self._tracker.log_file(path, "queries")
        undelivered = self._tracker.close()
        self._retry(self._folder.push)
        return undelivered if self._folder.home is None else None


def _slug(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60]


def _copy_folder(source: Path, target: Path) -> None:
    with atomic_write(target) as unfinished:
        shutil.copytree(source, unfinished)


def _save_videos(videos: Sequence[Video], path: Path) -> None:
    arrays = {f"frames_{index}": video.frames for index, video in enumerate(videos)}
    described = json.dumps(
        [{key: value for key, value in asdict(video).items() if key != "frames"} for video in videos]
    )
    with atomic_write(path) as unfinished, unfinished.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, described=np.array(described), **arrays)


def _load_videos(path: Path) -> list[Video]:
    with path.open("rb") as file, np.load(file) as stored:
        described = json.loads(str(stored["described"]))
        return [Video(frames=stored[f"frames_{index}"], **fields) for index, fields in enumerate(described)]
