"""The videos of a run's evaluations: mp4 files, comparison with step 0, and contact sheets in MLflow."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from vader_ray.config import ExperimentConfig
from vader_ray.errors import first_line
from vader_ray.files import UNFINISHED, atomic_write, write_text
from vader_ray.orchestration.runs.run_dir import RunDir
from vader_ray.orchestration.tracking.address import LISTING
from vader_ray.orchestration.tracking.tracker import Tracker
from vader_ray.training.events import Video
from vader_ray.training.gallery import gallery_html
from vader_ray.training.media import before_after_sheet, contact_sheet, read_mp4, repeat_short, write_mp4

_DAMAGE = (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error)
"""Errors that `_load_videos` raises for a damaged file."""


class VideoRecorder:
    """Writer of evaluations' videos, whose frames are kept on disk until all that shows them is written.

    `keep` is fast and comes before the step's checkpoint is handed over; `record` encodes, draws and logs,
    and may be repeated. A process that is killed between the two leaves its frames to the next one
    (`unrecorded`).
    """

    def __init__(
        self, config: ExperimentConfig, folder: RunDir, tracker: Tracker, log: Callable[[str], None]
    ) -> None:
        self._config, self._folder, self._tracker, self._log = config, folder, tracker, log

    def keep(self, step: int, videos: Sequence[Video]) -> None:
        """Write the frames of an evaluation to the disk, until `record` has written its files."""
        _save_videos(videos, self._kept(step))

    def unrecorded(self, last_step: int) -> dict[int, list[Video]]:
        """Return the videos that an earlier process has kept and not recorded, by step.

        Those of later steps than `last_step`, which will be evaluated again, and damaged ones are deleted.
        """
        found = dict[int, list[Video]]()
        for path in sorted(self._folder.unrecorded.glob("*")):
            if path.name.endswith(UNFINISHED) or int(path.stem) > last_step:
                path.unlink()
                continue
            try:
                found[int(path.stem)] = _load_videos(path)
            except _DAMAGE as error:
                self._log(f"{path} is damaged ({first_line(error)}); the videos of this step are lost")
                path.unlink()
        return found

    def record(self, step: int, videos: Sequence[Video], scores_before: dict[str, list[float]]) -> None:
        """Write an evaluation's mp4 files, the comparison with step 0 and the sheet of MLflow.

        Args:
            scores_before: `State.before`, for the repair of damaged frames of step 0.
        """
        self._write(step, videos, scores_before)
        for index, video in enumerate(videos):
            self._tracker.log_file(self._mp4(step, index, video), f"videos/step-{step:06d}")
        self._tracker.log_file(self._step_folder(step) / LISTING, f"videos/step-{step:06d}")
        sheet = contact_sheet(videos, title=f"{self._config.name}, step {step}", num_frames=4)
        self._tracker.log_image("eval/videos", step, sheet)
        self._kept(step).unlink(missing_ok=True)
        with suppress(OSError):  # other evaluations wait in it
            self._folder.unrecorded.rmdir()

    def _write(self, step: int, videos: Sequence[Video], scores_before: dict[str, list[float]]) -> None:
        frames_per_second = self._config.evaluation.frames_per_second
        for index, video in enumerate(videos):
            frames = repeat_short(video.frames, frames_per_second)
            write_mp4(frames, self._mp4(step, index, video), frames_per_second)
        write_text(self._step_folder(step) / LISTING, self._listing(step, videos))
        if step == 0:
            _save_videos(videos, self._folder.before, np.savez_compressed)
            return
        before = self._videos_before(videos, scores_before)
        title = f"{self._config.name}: before, and after {step} steps"
        before_after_sheet(before, videos, title=title).save(self._folder.before_after)
        page = gallery_html(before, videos, title=title, frames_per_second=frames_per_second)
        write_text(self._folder.gallery, page)

    def _kept(self, step: int) -> Path:
        return self._folder.unrecorded / f"{step:06d}.npz"

    def _step_folder(self, step: int) -> Path:
        return self._folder.videos / f"step-{step:06d}"

    def _mp4(self, step: int, index: int, video: Video) -> Path:
        return self._step_folder(step) / f"{index:02d}-{_slug(video.prompt)}.mp4"

    def _listing(self, step: int, videos: Sequence[Video]) -> str:
        described = [
            {
                "file": self._mp4(step, index, video).name,
                "prompt": video.prompt,
                "scores": dict(video.scores),
                "num_frames": len(video.frames),
            }
            for index, video in enumerate(videos)
        ]
        return json.dumps(described, indent=1) + "\n"

    def _videos_before(self, videos: Sequence[Video], scores_before: dict[str, list[float]]) -> list[Video]:
        """Return the videos before training; if their file is damaged, rebuild it from their mp4 files."""
        path = self._folder.before
        try:
            return _load_videos(path)
        except _DAMAGE as error:
            self._log(f"{path} is damaged ({first_line(error)}); it is rebuilt from the mp4 files of step 0")
        rebuilt = [
            Video(
                prompt=video.prompt,
                noise_seed=video.noise_seed,
                scores={
                    name: values[index] for name, values in scores_before.items() if name in video.scores
                },
                frames=read_mp4(self._mp4(0, index, video))[: len(video.frames)],  # the first of the loops
            )
            for index, video in enumerate(videos)
        ]
        _save_videos(rebuilt, path, np.savez_compressed)
        return rebuilt


def _slug(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60]


def _save_videos(videos: Sequence[Video], path: Path, save: Callable[..., None] = np.savez) -> None:
    arrays = {f"frames_{index}": video.frames for index, video in enumerate(videos)}
    described = json.dumps(
        [{field: getattr(video, field) for field in ("prompt", "noise_seed", "scores")} for video in videos]
    )
    with atomic_write(path, durable=True) as unfinished, unfinished.open("wb") as file:
        save(file, allow_pickle=False, described=np.array(described), **arrays)


def _load_videos(path: Path) -> list[Video]:
    with path.open("rb") as file, np.load(file) as stored:
        described = json.loads(str(stored["described"]))
        return [Video(frames=stored[f"frames_{index}"], **fields) for index, fields in enumerate(described)]
