"""Damaged records of a run are named, and rebuilt from what is left where that is safe."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.recipe import tiny_config
from tests.helpers.runs import train_here
from vader_ray.config import ExperimentConfig
from vader_ray.errors import UserError
from vader_ray.orchestration.runs.finish import finish_run
from vader_ray.orchestration.runs.launch import train_run
from vader_ray.orchestration.runs.run_dir import RunDir
from vader_ray.training.events import StepEvent
from vader_ray.training.resolve import resolve_names


def _empty(content: bytes) -> bytes:
    return b""


def _truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _flip(content: bytes) -> bytes:
    return bytes([content[0] ^ 1]) + content[1:]


def _change_types(content: bytes) -> bytes:
    return json.dumps({name: [1] for name in json.loads(content)}).encode()


DAMAGES = [_empty, _truncate, _flip, _change_types]


def _config(weights: Path, folder: Path) -> ExperimentConfig:
    config = tiny_config(
        weights,
        num_steps=2,
        evaluation={"every": 2, "num_videos": 2, "num_shown": 2},
        tracking={"uri": f"sqlite:///{folder}/mlflow.db", "system_metrics": False},
    )
    return resolve_names(config)


def _record(
    config: ExperimentConfig, root: Path, on_step: Callable[[StepEvent], None] = lambda event: None
) -> RunDir:
    """Train a run in this process, from its folder to its summary."""
    folder, run = train_here(config, root, "mine", on_step=on_step)
    finish_run(config, folder, run)
    return folder


@pytest.fixture(scope="module")
def finished(
    tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ExperimentConfig, RunDir]:
    root = tmp_path_factory.mktemp("finished")
    config = _config(tiny_pipeline_folder, root)
    return config, _record(config, root / "runs")


@pytest.fixture
def run(finished: tuple[ExperimentConfig, RunDir]) -> tuple[ExperimentConfig, RunDir]:
    """The finished run with undamaged files."""
    config, folder = finished
    safe = folder.path.parent.parent / "safe"
    if safe.exists():
        shutil.rmtree(folder.path)
        shutil.copytree(safe, folder.path)
    else:
        shutil.copytree(folder.path, safe)
    return config, folder


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("names", [("summary.json",), ("run.json",), ("run.json", "summary.json")])
def test_damaged_records_of_a_finished_run_are_named_and_written_again(
    names: tuple[str, ...],
    damage: Callable[[bytes], bytes],
    run: tuple[ExperimentConfig, RunDir],
    capsys: pytest.CaptureFixture[str],
) -> None:
    config, folder = run
    expected = folder.read_summary()
    before = folder.read_metadata()
    for name in names:
        path = folder.path / name
        path.write_bytes(damage(path.read_bytes()))
    summary = train_run(config, runs_dir=folder.path.parent, run_name="mine", resume=True)
    assert summary == folder.read_summary() == expected
    assert folder.read_metadata() == before
    printed = capsys.readouterr().out.splitlines()
    for name in names:
        assert any(line.startswith(f"{folder.path / name} was damaged; it was written") for line in printed)


def test_a_damaged_run_file_is_not_rebuilt_for_other_settings(run: tuple[ExperimentConfig, RunDir]) -> None:
    config, folder = run
    folder.metadata.write_text("{")
    other = config.model_copy(update={"seed": 1})
    with pytest.raises(UserError, match=rf"{folder.metadata} is damaged .*; restore it from a copy, or"):
        train_run(other, runs_dir=folder.path.parent, run_name="mine", resume=True)


def test_without_a_name_a_damaged_run_is_named_and_left_out(
    run: tuple[ExperimentConfig, RunDir], capsys: pytest.CaptureFixture[str]
) -> None:
    config, folder = run
    damaged = folder.path.with_name(f"{config.name}-20260101-000000")
    shutil.copytree(folder.path, damaged)
    (damaged / "summary.json").unlink()
    (damaged / "run.json").write_text("{")
    with pytest.raises(UserError, match="there is no unfinished run of 'tiny'"):
        train_run(config, runs_dir=folder.path.parent, resume=True)
    assert f"the run {damaged.name} is left out: {damaged / 'run.json'} is damaged" in capsys.readouterr().out


def test_a_damaged_recipe_is_written_again(run: tuple[ExperimentConfig, RunDir]) -> None:
    config, folder = run
    text = folder.recipe.read_bytes()
    folder.recipe.write_bytes(bytes([text[0] ^ 0x80]) + text[1:])  # no UTF-8
    train_run(config, runs_dir=folder.path.parent, run_name="mine", resume=True)
    assert folder.recipe.read_bytes() == text


def test_a_damaged_state_is_named(run: tuple[ExperimentConfig, RunDir]) -> None:
    _, folder = run
    folder.state.write_text('{"steps": 2}')
    with pytest.raises(UserError, match=rf"{folder.state} is damaged"):
        folder.read_state()


@pytest.mark.slow
@pytest.mark.parametrize("damage", [_truncate, None])
def test_damaged_videos_before_training_are_rebuilt_from_their_mp4_files(
    damage: Callable[[bytes], bytes] | None,
    tiny_pipeline_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = tmp_path / "runs" / "mine" / "videos" / "before.npz"

    def damage_once(event: StepEvent) -> None:
        if event.step == 1 and damage is None:
            before.unlink()
        elif event.step == 1 and damage is not None:
            before.write_bytes(damage(before.read_bytes()))

    folder = _record(_config(tiny_pipeline_folder, tmp_path), tmp_path / "runs", damage_once)
    assert f"{before} is damaged" in capsys.readouterr().out
    assert before.stat().st_size > 1000
    assert folder.before_after.exists()
    assert folder.gallery.exists()
