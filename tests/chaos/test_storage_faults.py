"""Faults of storage: every file of a checkpoint damaged in every way, and full and read-only disks."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.helpers.recipe import tiny_config
from vader_ray.errors import UserError
from vader_ray.training import checkpoint
from vader_ray.training.checkpoint import State, choose_undamaged, restore, save
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
    assert {str(name) for name in names} >= {"state.json", "optimizer.pt", "base.pt", checkpoint.MANIFEST}
    earlier = shutil.copytree(saved, tmp_path / "checkpoint_1")
    for name in names:
        damaged = shutil.copytree(saved, tmp_path / "checkpoint_2", dirs_exist_ok=True)
        if damage is None:
            (damaged / name).unlink()
        else:
            (damaged / name).write_bytes(damage((saved / name).read_bytes()))
        named = "" if str(name) == checkpoint.MANIFEST else name.name  # a flipped digest names its file
        with pytest.raises(UserError, match=f"{damaged} is not a complete checkpoint: .*{named}"):
            restore(damaged, experiment.model, optimizer)
        printed = list[str]()
        candidates = [(path.name, path) for path in (damaged, earlier)]
        assert choose_undamaged(candidates, printed.append) == earlier
        assert len(printed) == 1
    assert restore(saved, experiment.model, optimizer)[0] == State(step=2)
