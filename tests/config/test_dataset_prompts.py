"""Prompts of data sets of the package `datasets`."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from vader_ray.config import ExperimentConfig, load
from vader_ray.errors import UserError


def _recipe(address: str, column: str = "prompt") -> ExperimentConfig:
    return load("shapes_hps", {"prompts.train": address, "prompts.column": column})


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local data set in Parquet; beside it one in CSV with two splits, and one with an empty cell."""
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data"
    folder.mkdir()
    parquet.write_table(pa.table({"text": ["a star", " a dog "], "id": [1, 2]}), folder / "train.parquet")
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.csv").write_text("id,prompt\n1,a hare\n")
    (tmp_path / "rows" / "test.csv").write_text("id,prompt\n1,a cat\n")
    (tmp_path / "gaps").mkdir()
    parquet.write_table(pa.table({"prompt": ["a cat", None]}), tmp_path / "gaps" / "train.parquet")
    return folder


def test_a_split_of_a_data_set_is_read(data: Path) -> None:
    assert _recipe("datasets:./data", "text").prompts.train == ("a star", "a dog")
    assert _recipe(f"datasets:{data.parent}/rows:train").prompts.train == ("a hare",)


@pytest.mark.parametrize(
    ("address", "piece"),
    [
        ("datasets:./data", "must have exactly one column 'prompt' and has 'text', 'id'; set prompts.column"),
        ("datasets:./gaps", "datasets:./gaps, row 2: the column 'prompt' is empty"),
        ("datasets:./rows:other", "'datasets:./rows:other' cannot be read (Bad split: other."),
        ("datasets:./none", "'datasets:./none' cannot be read (Couldn't find any data file at /"),
        (
            "datasets:owner/name",
            "'datasets:owner/name' cannot be read (Couldn't reach 'owner/name' on the Hub",
        ),
    ],
)
def test_a_data_set_that_cannot_be_read_is_refused(data: Path, address: str, piece: str) -> None:
    with pytest.raises(UserError) as refusal:
        _recipe(address)
    assert str(refusal.value).startswith("prompts.train: ")
    assert piece in str(refusal.value)


@pytest.mark.parametrize("address", ["datasets:", "datasets:a b", "datasets:a/b/c", "datasets::train"])
def test_a_text_that_names_no_data_set_is_refused(address: str) -> None:
    with pytest.raises(UserError, match="names no data set; give datasets:OWNER/NAME:SPLIT"):
        _recipe(address)


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # an import of it fails
    with pytest.raises(UserError, match="needs the package `datasets`, which is not installed; run `pip"):
        _recipe("datasets:owner/name")
