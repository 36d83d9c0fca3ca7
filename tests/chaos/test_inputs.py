"""Inputs of people: what cannot work is refused by one sentence that names it and the remedy, without work.

The tables are in ``inputs/``, one file per kind of input.
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from typer.testing import CliRunner

import vader_ray as vr
from tests.chaos.inputs import (
    accepted,
    adapters,
    commands,
    model_folders,
    overrides,
    prompt_files,
    python_api,
    recipe_files,
    sweeps,
)
from tests.chaos.inputs.values import fill, rows
from tests.helpers.adapter_files import write_adapter
from tests.helpers.paths import REPOSITORY
from tests.helpers.recipe import write_tiny
from tests.helpers.tiny import SAMPLING
from vader_ray import models
from vader_ray.cli import app
from vader_ray.config import ExperimentConfig, ModelConfig, SamplingConfig, load
from vader_ray.errors import UserError
from vader_ray.orchestration.sweeps.definition import BaseRecipe, SweepDefinition
from vader_ray.orchestration.sweeps.request import check_overrides
from vader_ray.prompt_files import read_prompt_file
from vader_ray.training.resolve import resolve_names

pytestmark = pytest.mark.timeout(60)  # an input without answer ends its test


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("COLUMNS", "300")


def _refusal(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as refusal:
        call()
    return str(refusal.value)


def _with_overrides(text: str) -> ExperimentConfig:
    """The packaged recipe with ``a.b=1 c.d=2``, its names resolved."""
    changes = re.split(r" (?=[a-z_]+(?:\.[a-z_]+)+=)", fill(text))
    return resolve_names(load("shapes_hps", changes))


@pytest.mark.parametrize(("given", "piece"), rows(overrides.REFUSED))
def test_an_override_that_cannot_work_is_refused(given: str, piece: str) -> None:
    assert piece in _refusal(lambda: _with_overrides(given))


@pytest.mark.parametrize("given", accepted.ACCEPTED.strip().split("\n"))
def test_an_unusual_override_is_accepted(given: str) -> None:
    assert _with_overrides(given)


@pytest.mark.parametrize(("text", "piece"), recipe_files.REFUSED, ids=range(len(recipe_files.REFUSED)))
def test_a_file_that_is_no_recipe_is_refused(text: str | bytes, piece: str) -> None:
    content = text if isinstance(text, bytes) else fill(text).encode()
    Path("recipe.yaml").write_bytes(content)
    assert piece in _refusal(lambda: vr.load_recipe("recipe.yaml"))


@pytest.mark.parametrize(
    ("name", "content", "piece"), prompt_files.REFUSED, ids=range(len(prompt_files.REFUSED))
)
def test_a_file_that_holds_no_prompts_is_refused(name: str, content: Any, piece: str) -> None:
    path = _write_prompts(Path(name), content)
    message = _refusal(lambda: load("shapes_hps", {"prompts.train": str(path)}))
    assert message.startswith("prompts.train: ")
    assert piece in message


@pytest.mark.parametrize(
    ("name", "content", "prompts"), prompt_files.ACCEPTED, ids=range(len(prompt_files.ACCEPTED))
)
def test_an_unusual_file_of_prompts_is_read(name: str, content: Any, prompts: tuple[str, ...]) -> None:
    assert read_prompt_file(_write_prompts(Path(name), content)) == prompts


def _write_prompts(path: Path, content: Any) -> Path:
    if isinstance(content, dict):
        parquet.write_table(pa.table(content), path)
    else:
        path.write_bytes(content)
    return path


def test_no_device_pipe_or_huge_file_is_read_as_prompts() -> None:
    os.mkfifo("pipe.txt")
    assert "pipe.txt, which is no file" in _refusal(lambda: load("shapes_hps", ["prompts.train=pipe.txt"]))
    with Path("huge.txt").open("wb") as file:
        file.truncate(2**34)
    assert "has 17179869184 bytes; a file of prompts has at most 268435456" in _refusal(
        lambda: load("shapes_hps", ["prompts.train=huge.txt"])
    )


@pytest.mark.parametrize(("given", "piece"), rows(commands.REFUSED))
def test_a_command_line_that_cannot_work_is_refused(given: str, piece: str) -> None:
    _write_files()
    result = CliRunner().invoke(app, [fill(part) for part in shlex.split(given)])
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    assert piece in re.sub(r"\s+", " ", result.stderr.replace("│", ""))
    assert "Traceback" not in result.output


def _write_files() -> None:
    """Files of every kind that a command line of the table names."""
    write_tiny(Path(), vr.packaged_weights("text_to_video"))
    Path("folder").mkdir()
    Path("file.txt").write_text("a star\n")
    for name in ("fifo", "fifo.mp4"):
        os.mkfifo(name)
    Path("empty.yaml").write_text("")
    Path("list.yaml").write_text("[1]")
    Path("binary.yaml").write_bytes(bytes(range(256)))
    Path("latin.yaml").write_bytes("name: é".encode("latin-1"))
    Path("two.yaml").write_text("a: 1\n---\nb: 2\n")
    Path("damaged").mkdir()
    Path("damaged/undelivered.jsonl").write_text("{]\n{\n")


def test_an_output_that_cannot_be_written_is_refused_and_nothing_is_deleted() -> None:
    _write_files()
    Path("folder/precious").write_text("a year of work")
    CliRunner().invoke(app, ["generate", "tiny.yaml", "a star", "-o", "folder"])
    assert Path("folder/precious").read_text() == "a year of work"


@pytest.mark.parametrize(
    ("file", "content", "piece"), model_folders.REFUSED, ids=range(len(model_folders.REFUSED))
)
def test_a_damaged_model_folder_is_refused(
    tiny_pipeline_folder: Path, file: str, content: bytes | None, piece: str
) -> None:
    shutil.copytree(tiny_pipeline_folder, "weights", copy_function=os.link)
    damaged = Path("weights") / file
    shutil.rmtree(damaged) if damaged.is_dir() else damaged.unlink()
    if content is not None:
        damaged.write_bytes(content)
    message = _refusal(lambda: _build("weights"))
    assert message.startswith("model.weights: ")
    assert piece in message


def _build(weights: str) -> Any:
    return models.build(
        ModelConfig(family="modelscope", weights=weights),
        SamplingConfig(**SAMPLING),
        None,
        seed=0,
        chunk_size=1,
        device=torch.device("cpu"),
    )


@pytest.mark.parametrize(("content", "piece"), adapters.REFUSED, ids=range(len(adapters.REFUSED)))
def test_an_adapter_with_unusable_settings_is_refused(content: bytes, piece: str) -> None:
    write_adapter(Path("adapter"), content)
    message = _refusal(lambda: models.adapter_shape(Path("adapter")))
    assert message.startswith("the adapter in adapter")
    assert piece in message
    assert "\n" not in message


@pytest.mark.parametrize("content", adapters.ACCEPTED, ids=range(len(adapters.ACCEPTED)))
def test_an_adapter_with_unusual_settings_is_read(content: bytes) -> None:
    write_adapter(Path("adapter"), content)
    assert models.adapter_shape(Path("adapter")).rank == 2


@pytest.mark.parametrize(("call", "piece"), python_api.REFUSED, ids=range(len(python_api.REFUSED)))
def test_a_call_that_cannot_work_is_refused(call: Callable[[], object], piece: str) -> None:
    assert piece in _refusal(call)
    assert not Path("runs").exists()


def test_a_pipeline_that_cannot_be_used_so_is_refused(tiny_pipeline_folder: Path) -> None:
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(tiny_pipeline_folder)
    for arguments, piece in python_api.OF_A_PIPELINE:
        wrap = {"num_frames": 3, "height": 8, "width": 8} | arguments
        assert piece in _refusal(lambda wrap=wrap: vr.VideoModel.from_pipeline(pipe, **wrap))  # type: ignore[misc]


def _request(sweep: str, override: str) -> None:
    """Check an override of a sweep of this repository, as its script does."""
    definition: SweepDefinition = runpy.run_path(str(REPOSITORY / "sweeps" / f"{sweep}.py"))["SWEEP"]
    recipe = BaseRecipe.of(definition, None, [override])
    check_overrides(definition, recipe, [override], recipe.load().seed)


@pytest.mark.parametrize(("sweep", "override", "piece"), sweeps.REFUSED)
def test_an_override_that_no_trial_would_use_is_refused(sweep: str, override: str, piece: str) -> None:
    assert piece in _refusal(lambda: _request(sweep, override))


@pytest.mark.parametrize(("sweep", "override"), sweeps.ACCEPTED)
def test_an_override_that_every_trial_uses_is_accepted(sweep: str, override: str) -> None:
    _request(sweep, override)
