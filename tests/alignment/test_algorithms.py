"""The contract of algorithms, for every file of the folder and for an algorithm outside the package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.helpers.paths import REPOSITORY
from tests.helpers.recipe import tiny_config
from tests.helpers.tiny import SAMPLING
from tests.helpers.training import Keeper
from vader_ray.alignment import algorithms
from vader_ray.alignment.base import Algorithm, trajectory_model
from vader_ray.config import ExperimentConfig, override, validate
from vader_ray.errors import UserError
from vader_ray.training.experiment import build
from vader_ray.training.loop import train
from vader_ray.types import SamplingModel, TrajectoryModel

OUTSIDE = "tests.helpers.reward_weighted"


def _config(folder: Path, name: str, **changes: Any) -> ExperimentConfig:
    """Two steps of an algorithm with its default options; DDPO needs ``eta``."""
    settings = {"algorithm": {"name": name}, "sampling": SAMPLING | {"eta": 1.0}, "num_steps": 2}
    return tiny_config(folder, **settings | changes)


def _adapters(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "2" / "adapter").iterdir())}


@pytest.mark.parametrize("name", [*algorithms.names(), OUTSIDE])
def test_options_are_described_frozen_and_survive_a_process_border(
    tiny_pipeline_folder: Path, name: str
) -> None:
    config = _config(tiny_pipeline_folder, name)
    checked = algorithms.check(config)
    options = algorithms.resolve(name).settings_class
    assert set(checked.options) == set(options.model_fields), "defaults are written out"
    assert all(field.description for field in options.model_fields.values())
    with pytest.raises(ValidationError, match="frozen"):
        setattr(options(), next(iter(options.model_fields)), 1)
    complete = config.model_copy(update={"algorithm": checked})
    again = validate(json.loads(json.dumps(complete.model_dump(mode="json"))))
    assert again.algorithm == checked
    assert algorithms.check(again) == checked


@pytest.mark.slow
@pytest.mark.parametrize("name", [*algorithms.names(), OUTSIDE])
def test_a_step_changes_the_adapter_and_repeats_exactly(
    tiny_pipeline_folder: Path, tmp_path: Path, name: str
) -> None:
    config = _config(tiny_pipeline_folder, name)
    for run in ("first", "second"):
        keeper = Keeper(tmp_path / run)
        state = train(config, on_step=keeper)
        json.dumps(state.algorithm_state)  # it is part of the checkpoint
    assert state.reward_queries == 8
    assert keeper.reports[-1].metrics["train/grad_norm"] > 0
    assert _adapters(tmp_path / "first") == _adapters(tmp_path / "second")
    untrained = build(config).model
    untrained.save_adapter(tmp_path / "untrained")
    before = {path.name: path.read_bytes() for path in (tmp_path / "untrained").iterdir()}
    assert before != _adapters(tmp_path / "first")


def test_the_options_of_an_algorithm_outside_are_checked_like_any_setting(tiny_pipeline_folder: Path) -> None:
    config = _config(tiny_pipeline_folder, OUTSIDE)
    assert algorithms.check(config).options == {"temperature": 1.0}
    for change, message in (
        ("algorithm.temperature=0", "algorithm.temperature: Input should be greater than 0, not 0"),
        ("algorithm.heat=1", "algorithm.heat: there is no such setting; here are temperature"),
        ("sampling.truncation_depth=2", "truncation_depth=2 has no effect on algorithm.name=tests.helpers"),
        ("algorithm.name=tests.helpers.tiny.load_tiny", "tests.helpers.tiny.load_tiny is no algorithm"),
    ):
        with pytest.raises(UserError) as refusal:
            algorithms.check(override(config, [change]))
        assert message in str(refusal.value)
        assert "\n" not in str(refusal.value)


STEP = """
import json, sys
from vader_ray.alignment import algorithms
from vader_ray.config import validate
from vader_ray.training.loop import train
config = validate(json.loads(sys.argv[1]))
config = config.model_copy(update={"algorithm": algorithms.check(config)})
events = []
state = train(config, on_step=events.append)
print(json.dumps([algorithms.names(), algorithms.__file__, state.step, events[-1].metrics["train/error"]]))
"""


@pytest.mark.slow
def test_a_new_file_in_the_folder_is_an_algorithm(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    """A copy of the package gets one file; nothing else in it is changed."""
    package = tmp_path / "vader_ray"
    shutil.copytree(
        REPOSITORY / "vader_ray", package, ignore=shutil.ignore_patterns("checkpoints", "__pycache__")
    )
    file = package / "alignment" / "algorithms" / "reward_weighted.py"
    shutil.copy(REPOSITORY / "tests" / "helpers" / "reward_weighted.py", file)
    recipe = _config(
        tiny_pipeline_folder, "reward_weighted", num_steps=1, evaluation={"num_videos": 2, "num_shown": 1}
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STEP, recipe.model_dump_json()],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    names, origin, step, error = json.loads(done.stdout.splitlines()[-1])
    assert names == sorted([*algorithms.names(), "reward_weighted"])
    assert origin.startswith(str(tmp_path))
    assert step == 1
    assert error > 0


@pytest.mark.parametrize("name", ["ddpo", "dpo"])
def test_algorithms_that_compare_objectives_refuse_dropout(tiny_pipeline_folder: Path, name: str) -> None:
    rewards = [{"reward": "brightness"}, {"reward": "sharpness", "dropout": 0.5}]
    message = f"rewards.1.dropout=0.5 changes the objective from step to step, and algorithm.name={name}"
    with pytest.raises(UserError, match=message):
        algorithms.check(_config(tiny_pipeline_folder, name, rewards=rewards))
    algorithms.check(_config(tiny_pipeline_folder, "vader", rewards=rewards))


class _NoTrajectories:
    """A model that only samples: it has what VADER needs."""

    def __init__(self, model: SamplingModel) -> None:
        names = [name for name in dir(SamplingModel) if not name.startswith("_")]
        for name in {*names, *SamplingModel.__annotations__}:
            setattr(self, name, getattr(model, name))


def test_algorithms_refuse_a_model_that_only_samples(tiny_pipeline_folder: Path) -> None:
    experiment = build(_config(tiny_pipeline_folder, "vader"))
    model: Any = _NoTrajectories(experiment.model)
    assert isinstance(model, SamplingModel)
    assert not isinstance(model, TrajectoryModel)
    assert trajectory_model(experiment.model, "ddpo") is experiment.model
    for name in algorithms.names():
        algorithm: Algorithm[Any] = algorithms.build(_config(tiny_pipeline_folder, name))
        if algorithm.uses_gradient_steps:
            algorithm.check_model(model)
            continue
        with pytest.raises(UserError, match=f"algorithm.name={name} needs .*; set algorithm.name=vader"):
            algorithm.check_model(model)
