"""Fixtures: tiny models with random weights in the libraries' own formats."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  Ray's default of 15 starves its workers where other tests run

from jaxtyping import install_import_hook

install_import_hook(
    ["vader_ray.alignment", "vader_ray.rewards", "vader_ray.metrics", "vader_ray.models"], "beartype.beartype"
)  # shapes are checked

from pathlib import Path

import pytest
import torch

from tests.helpers.tiny_pipeline import write_tiny_pipeline

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the files with slow tests first, so that two processes of xdist end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def tiny_pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ModelScope pipeline with random weights: 4 latent channels, decoder ×2, as diffusers saves it."""
    folder = tmp_path_factory.mktemp("tiny_modelscope")
    write_tiny_pipeline(folder)
    return folder
