"""A finished run whose adapters are published."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.recipe import FIRING_GUARD, FOUR_PROMPTS, tiny_config, validated_on
from tests.helpers.runs import record
from vader_ray.orchestration.runs.finish import finish_run
from vader_ray.orchestration.runs.run_dir import RunDir
from vader_ray.orchestration.tracking.server import tracking_uri


@pytest.fixture(scope="package")
def run(tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A finished run of two steps, with a guard that fires, a held-out reward and test prompts."""
    folder = tmp_path_factory.mktemp("published")
    config = tiny_config(
        tiny_pipeline_folder, num_steps=2, videos_per_step=2, description="Brighter videos",
        eval_rewards=[{"reward": "colorfulness"}],
        guard=FIRING_GUARD,
        prompts=validated_on(FOUR_PROMPTS[:2]) | {"test": FOUR_PROMPTS[2:]},
        evaluation={"every": 2, "num_videos": 2, "num_shown": 2},
        tracking={"uri": f"sqlite:///{folder}/mlflow.db", "system_metrics": False},
    )  # fmt: skip
    record(config, folder, "mine")
    made = RunDir(folder / "runs" / "mine")
    finish_run(config, made, made.read_mlflow_run(tracking_uri(config.tracking.uri)))
    return made
