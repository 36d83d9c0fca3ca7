"""Recording beside training: what a continued run needs is on disk first, and a kill loses nothing."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.network import free_port
from tests.helpers.recipe import tiny_config
from vader_ray.config import ExperimentConfig
from vader_ray.errors import RunFailed
from vader_ray.orchestration.runs.background import Background
from vader_ray.orchestration.runs.run_dir import RunDir, open_run_dir
from vader_ray.orchestration.runs.run_logger import RunLogger
from vader_ray.orchestration.runs.video_recorder import VideoRecorder
from vader_ray.orchestration.tracking import outbox
from vader_ray.orchestration.tracking.address import MlflowRun
from vader_ray.orchestration.tracking.tracker import Tracker
from vader_ray.training.checkpoint import State
from vader_ray.training.events import StepEvent, Video
from vader_ray.uris import Uri

NAMES = ["00-a-red-circle.mp4", "01-a-blue-star.mp4"]


@pytest.fixture
def config(tmp_path: Path) -> ExperimentConfig:
    return tiny_config(tmp_path)


@pytest.fixture
def folder(config: ExperimentConfig, tmp_path: Path) -> RunDir:
    return open_run_dir(config, tmp_path / "runs", "mine")


@pytest.fixture
def nobody() -> MlflowRun:
    """A run on a server that is down, so that all results wait in the outbox."""
    return MlflowRun(Uri(f"http://127.0.0.1:{free_port()}"), "0", "0" * 32)


def open_logger(
    config: ExperimentConfig, folder: RunDir, run: MlflowRun, step: int, *, in_background: bool = True
) -> RunLogger:
    said = list[str]()
    return RunLogger(config, folder, run, resumed_step=step, log=said.append, in_background=in_background)


def evaluated(step: int) -> StepEvent:
    frames = np.random.default_rng(step).integers(0, 256, (2, 3, 8, 8, 3), dtype=np.uint8)
    videos = tuple(
        Video(prompt, index, {"brightness": 0.5}, frames[index])
        for index, prompt in enumerate(("a red circle", "a blue star"))
    )
    state = State(step=step, before={"brightness": [0.5, 0.5]})
    return StepEvent(step, {"cost/reward_queries": 4.0 * step}, videos=videos, state=state)


def waiting(folder: RunDir) -> list[tuple[str, object]]:
    _, events = outbox.read(folder.path)
    return [(event["kind"], event.get("step", event.get("artifact_folder"))) for event in events]


def recorded(folder: RunDir, step: int) -> list[str]:
    return sorted(path.name for path in (folder.videos / f"step-{step:06d}").glob("*.mp4"))


def test_a_step_is_on_disk_before_its_videos_are_encoded(
    config: ExperimentConfig, folder: RunDir, nobody: MlflowRun
) -> None:
    with open_logger(config, folder, nobody, 0) as logger:
        logger.record(evaluated(0))
    folder.before.unlink()
    os.mkfifo(folder.before)  # the comparison with step 0 waits here
    with open_logger(config, folder, nobody, 1) as logger:
        logger.record(evaluated(3))
        assert [path.name for path in folder.unrecorded.iterdir()] == ["000003.npz"]
        assert ("metrics", 3) in waiting(folder)
        assert folder.read_state().step == 3
        assert not folder.gallery.exists()
        assert ("image", 3) not in waiting(folder)
        folder.before.write_bytes(b"damaged")  # so it is made of the mp4 files again
    assert recorded(folder, 3) == NAMES
    assert folder.gallery.exists()
    assert waiting(folder)[-3:] == [("file", "videos/step-000003")] * 2 + [("image", 3)]
    assert not folder.unrecorded.exists()


def test_the_next_process_records_what_a_killed_one_has_kept(
    config: ExperimentConfig, folder: RunDir, nobody: MlflowRun, tmp_path: Path
) -> None:
    with open_logger(config, folder, nobody, 0) as logger:
        for step in (0, 3):
            logger.record(evaluated(step))
    expected = {path: path.read_bytes() for path in folder.videos.glob("step-*/*.mp4")}

    killed = open_run_dir(config, tmp_path / "runs", "killed")
    tracker = Tracker(nobody.uri, nobody.run_id, killed.path, system_metrics=False, on_message=print)
    keeper = VideoRecorder(config, killed, tracker, print)
    for step in (0, 3, 6):
        keeper.keep(step, evaluated(step).videos)
    assert not list(killed.videos.glob("step-*"))
    with open_logger(config, killed, nobody, 4):  # from the checkpoint of step 4: step 6 is taken again
        pass
    found = {path: path.read_bytes() for path in killed.videos.glob("step-*/*.mp4")}
    assert sorted(path.name for path in found) == sorted(path.name for path in expected)
    assert sorted(found.values()) == sorted(expected.values())
    assert [kind for kind, _ in waiting(killed)] == ["file", "file", "file", "image"] * 2
    assert not killed.unrecorded.exists()


def test_damaged_frames_are_named(config: ExperimentConfig, folder: RunDir, nobody: MlflowRun) -> None:
    folder.unrecorded.mkdir(parents=True)
    (folder.unrecorded / "000003.npz").write_bytes(b"PK")
    said = list[str]()
    with RunLogger(config, folder, nobody, resumed_step=4, log=said.append, in_background=True):
        pass
    assert [line for line in said if "unrecorded/000003.npz is damaged" in line]
    assert not list(folder.unrecorded.iterdir())


def test_a_trial_waits_for_its_videos(config: ExperimentConfig, folder: RunDir, nobody: MlflowRun) -> None:
    with open_logger(config, folder, nobody, 0, in_background=False) as logger:
        logger.record(evaluated(0))
        assert recorded(folder, 0) == NAMES
        assert not folder.unrecorded.exists()


def test_an_error_of_the_thread_ends_the_run(folder: RunDir, nobody: MlflowRun) -> None:
    config = tiny_config(folder.path, checkpoint={"retry_minutes": 0})
    folder.videos.write_text("no folder")
    with (
        pytest.raises((OSError, RunFailed), match="cannot be written"),
        open_logger(config, folder, nobody, 0) as logger,
    ):
        logger.record(evaluated(0))


def test_functions_are_called_in_order_and_their_first_error_is_raised() -> None:
    background, calls = Background(), list[int]()

    def fail() -> None:
        background.submit(lambda: calls.append(2))
        raise ValueError("first")

    background.submit(lambda: calls.append(1))
    background.submit(fail)
    with pytest.raises(ValueError, match="first"):
        background.wait()
    assert calls == [1, 2]
    background.check()
    background.submit(fail)
    assert [str(error) for error in background.close()] == ["first"]
    assert calls == [1, 2, 2]
