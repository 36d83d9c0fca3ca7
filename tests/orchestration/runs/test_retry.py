"""A full or read-only disk pauses a run, which goes on unchanged when it can, else ends with a sentence."""

from __future__ import annotations

import errno
import shutil
import threading
from pathlib import Path

import pytest

from tests.helpers.recipe import tiny_config
from tests.helpers.runs import adapter_files, train_here
from tests.helpers.small_disk import fill, free, remount, small_disk
from vader_ray.config import ExperimentConfig
from vader_ray.errors import RunFailed
from vader_ray.orchestration.runs.query_log import read_queries
from vader_ray.orchestration.runs.retry import retry_writes
from vader_ray.training.events import StepEvent


def _config(weights: Path, folder: Path, *, minutes: float) -> ExperimentConfig:
    return tiny_config(
        weights,
        num_steps=3,
        evaluation={"every": 3, "num_videos": 2, "num_shown": 1},
        checkpoint={"every": 1, "retry_minutes": minutes},
        tracking={"uri": f"sqlite:///{folder}/mlflow.db", "system_metrics": False},
    )


def test_a_write_is_repeated_and_its_pause_is_printed_once() -> None:
    printed, left = list[str](), [OSError(errno.ENOSPC, "No space left on device"), OSError("other")]

    def write() -> str:
        if left:
            raise left.pop(0)
        return "written"

    assert retry_writes(write, "/disk", minutes=1, log=printed.append) == "written"
    assert printed == [
        "/disk cannot be written (No space left on device); training pauses and tries again for 1 minutes",
        "/disk can be written again; training continues",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["full", pytest.param("read-only", marks=pytest.mark.chaos)])
def test_a_disk_that_can_be_written_again_leaves_the_run_unchanged(
    fault: str, tiny_pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = _config(tiny_pipeline_folder, tmp_path, minutes=1)
    undisturbed, _ = train_here(config, tmp_path / "undisturbed", "mine")
    with small_disk(tmp_path / "disk", megabytes=4) as disk:

        def mend_disk() -> None:
            free(disk) if fault == "full" else remount(disk, "rw")

        def break_disk(event: StepEvent) -> None:
            if event.step == 1:
                fill(disk) if fault == "full" else remount(disk, "ro")
                threading.Timer(5, mend_disk).start()

        folder, _ = train_here(config, disk / "runs", "mine", on_step=break_disk)
        assert adapter_files(folder.path) == adapter_files(undisturbed.path)
        videos = read_queries(folder.queries)["video"].to_pylist()
        assert videos == read_queries(undisturbed.queries)["video"].to_pylist()
    printed = capsys.readouterr().out
    assert printed.count("training pauses and tries again") == 1
    assert printed.count("can be written again; training continues") == 1


@pytest.mark.slow
def test_a_disk_that_stays_full_ends_the_run_with_its_path_and_a_remedy(
    tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    config = _config(tiny_pipeline_folder, tmp_path, minutes=0.01)
    with small_disk(tmp_path / "disk", megabytes=4) as disk:

        def fill_at_one(event: StepEvent) -> None:
            if event.step == 1:
                fill(disk)

        with pytest.raises(
            RunFailed,
            match=rf"^{disk}/runs/mine cannot be written \(No space left on device\); free some space, "
            "or make it writable and reachable, and continue with --resume",
        ):
            train_here(config, disk / "runs", "mine", on_step=fill_at_one)
        assert shutil.disk_usage(disk).free == 0
