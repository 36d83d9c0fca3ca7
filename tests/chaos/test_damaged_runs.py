"""Every file that a continued run reads, damaged in every way: the end is equal, or it is a sentence."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.campaign import assert_identical
from tests.helpers.local_run import run_locally
from tests.helpers.recipe import tiny_config
from tests.helpers.runs import open_here, record, train_here
from vader_ray.config import ExperimentConfig
from vader_ray.errors import RunFailed, UserError
from vader_ray.orchestration.runs.finish import finish_run
from vader_ray.training.events import StepEvent

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]


def _truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _empty(content: bytes) -> bytes:
    return b""


def _flip(content: bytes) -> bytes:
    """Flip one bit in the middle, which leaves no ASCII text."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0x80]) + content[middle + 1 :]


@pytest.fixture(scope="module")
def config(tiny_pipeline_folder: Path, root: Path) -> ExperimentConfig:
    return tiny_config(
        tiny_pipeline_folder,
        num_steps=4,
        evaluation={"every": 2, "num_videos": 2, "num_shown": 1},
        checkpoint={"every": 1, "keep": 2},
        tracking={"uri": f"sqlite:///{root}/mlflow.db", "system_metrics": False},
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


@pytest.fixture(scope="module")
def stopped(config: ExperimentConfig, root: Path) -> Path:
    """Run folder and database as a kill after the third step would leave them, and an undisturbed run."""
    record(config, root, "straight")
    copy = root / "stopped"

    def keep_a_copy(event: StepEvent) -> None:
        if event.step == 3:
            shutil.copytree(root / "runs" / "mine", copy / "mine")
            shutil.copyfile(root / "mlflow.db", copy / "mlflow.db")

    train_here(config, root / "runs", "mine", on_step=keep_a_copy)
    return copy


def _files_read(run: Path) -> list[Path]:
    """The files of a run that a continued one reads or replaces: not those that only people read."""
    latest = max((run / "checkpoints").iterdir())
    folders = [latest, run / "adapter", run / "best_adapter"]
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    return [*files, *(run / name for name in ("run.json", "state.json", "recipe.yaml", "videos/before.npz"))]


@pytest.mark.parametrize("damage", [_truncate, _empty, _flip])
def test_no_damaged_file_changes_a_continued_run(
    damage: Callable[[bytes], bytes], config: ExperimentConfig, root: Path, stopped: Path
) -> None:
    run = root / "runs" / "mine"
    for path in _files_read(stopped / "mine"):
        name = path.relative_to(stopped / "mine")
        shutil.rmtree(run)
        shutil.copytree(stopped / "mine", run)
        shutil.copyfile(stopped / "mlflow.db", root / "mlflow.db")
        (run / name).write_bytes(damage(path.read_bytes()))
        _continue_and_compare(config, root, run / name)


def _continue_and_compare(config: ExperimentConfig, root: Path, damaged: Path) -> None:
    """The run ends equal to the undisturbed one, or it is refused with the name of the damaged file."""
    try:
        folder, mlflow_run = open_here(config, root / "runs", "mine")
        run_locally(config, folder, mlflow_run)
        finish_run(config, folder, mlflow_run)
    except (UserError, RunFailed) as error:
        assert damaged.name in str(error)  # noqa: PT017  both outcomes are right
    else:
        assert_identical(root / "runs" / "mine", root / "runs" / "straight")
