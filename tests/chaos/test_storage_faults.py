"""Faults of storage: every file of a checkpoint damaged in every way, and full and read-only disks."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.helpers.recipe import tiny_config
from tests.helpers.runs import train_here
from tests.helpers.small_disk import fill, free, small_disk
from vader_ray.errors import UserError
from vader_ray.manifest import MANIFEST
from vader_ray.orchestration.runs.run_dir import KEPT_BY_RAY
from vader_ray.orchestration.runs.storage import Mirror
from vader_ray.training.checkpoint import State, choose_undamaged, restore, save
from vader_ray.training.events import StepEvent
from vader_ray.training.experiment import Experiment, build
from vader_ray.training.loop import make_optimizer

pytestmark = pytest.mark.slow


def _truncate(content: bytes) -> bytes:
    return content[:-1]


def _empty(content: bytes) -> bytes:
    return b""


def _flip(content: bytes) -> bytes:
    """Flip one bit in the middle."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.fixture(scope="module")
def experiment(tiny_pipeline_folder: Path) -> Experiment:
    return build(tiny_config(tiny_pipeline_folder))


@pytest.fixture(scope="module")
def saved(
    experiment: Experiment, tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A checkpoint of a step."""
    folder = tmp_path_factory.mktemp("saved")
    optimizer = make_optimizer(tiny_config(tiny_pipeline_folder), experiment)
    best = folder / "best"
    experiment.model.save_adapter(best)
    base = {"diversity": torch.ones(2, 3)}
    return save(folder / "checkpoint_2", State(step=2), experiment.model, optimizer, best, base)


@pytest.mark.parametrize("damage", [_truncate, _empty, _flip, None])
def test_no_damaged_file_of_a_checkpoint_is_loaded(
    damage: Callable[[bytes], bytes] | None,
    saved: Path,
    experiment: Experiment,
    tiny_pipeline_folder: Path,
    tmp_path: Path,
) -> None:
    optimizer = make_optimizer(tiny_config(tiny_pipeline_folder), experiment)
    names = [path.relative_to(saved) for path in sorted(saved.rglob("*")) if path.is_file()]
    assert {str(name) for name in names} >= {"state.json", "optimizer.pt", "base.pt", MANIFEST}
    earlier = shutil.copytree(saved, tmp_path / "checkpoint_1")
    for name in names:
        damaged = shutil.copytree(saved, tmp_path / "checkpoint_2", dirs_exist_ok=True)
        if damage is None:
            (damaged / name).unlink()
        else:
            (damaged / name).write_bytes(damage((saved / name).read_bytes()))
        named = "" if str(name) == MANIFEST else name.name  # a flipped digest names its file
        with pytest.raises(UserError, match=f"{damaged} is not a complete checkpoint: .*{named}"):
            restore(damaged, experiment.model, optimizer)
        printed = list[str]()
        candidates = [(path.name, path) for path in (damaged, earlier)]
        assert choose_undamaged(candidates, printed.append) == earlier
        assert len(printed) == 1
    assert restore(saved, experiment.model, optimizer)[0] == State(step=2)


@pytest.mark.chaos
def test_a_storage_that_refuses_files_for_a_while_has_them_all_at_the_end(
    tiny_pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(
        tiny_pipeline_folder,
        num_steps=3,
        evaluation={"every": 3, "num_videos": 2, "num_shown": 1},
        checkpoint={"every": 1, "retry_minutes": 1},
        tracking={"uri": f"sqlite:///{tmp_path}/mlflow.db", "system_metrics": False},
    )
    with small_disk(tmp_path / "shared", megabytes=4) as storage:

        def fill_for_a_while(event: StepEvent) -> None:
            if event.step == 1:
                fill(storage)
                threading.Timer(8, free, [storage]).start()

        folder, _ = train_here(config, tmp_path / "runs", "mine", str(storage), fill_for_a_while)
        printed = capsys.readouterr().out
        assert "did not take the run's files" in printed
        assert "can be written again; training continues" in printed
        copy = tmp_path / "copy"
        Mirror(copy, f"{storage}/mine", skip=KEPT_BY_RAY).pull()
        files = {path.relative_to(copy): path.read_bytes() for path in copy.rglob("*") if path.is_file()}
        assert {Path("state.json"), Path("adapter/adapter_model.safetensors")} <= files.keys()
        assert all((folder.path / name).read_bytes() == content for name, content in files.items())
