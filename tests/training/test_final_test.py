"""The evaluation on test prompts at the end of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.recipe import FIRING_GUARD, FOUR_PROMPTS, tiny_config
from tests.helpers.training import Keeper
from vader_ray.config import ExperimentConfig
from vader_ray.training.distributed import WorkerGroup
from vader_ray.training.evaluation import evaluate, planned_videos
from vader_ray.training.experiment import build
from vader_ray.training.loop import train

TRAIN, TEST = ["a red circle moving left", "a blue star moving up"], ["a green star moving up", "a red star"]


def with_test(weights: Path, **changes: Any) -> ExperimentConfig:
    prompts = {"train": TRAIN, "validation": FOUR_PROMPTS, "test": TEST}
    return tiny_config(
        weights, **({"num_steps": 2, "prompts": prompts, "checkpoint": {"every": 2}} | changes)
    )


def rewards(metrics: dict[str, float], room: str) -> list[float]:
    return [metrics[f"{room}/{name}"] for name in ("reward/brightness", "objective", "motion", "diversity")]


def test_noise_of_the_test_is_independent_of_that_of_validation(tiny_pipeline_folder: Path) -> None:
    config = with_test(tiny_pipeline_folder, evaluation={"every": 1, "num_videos": 8, "num_test_videos": 5})
    validation, test = planned_videos(config), planned_videos(config, "test")
    assert (len(validation), len(test)) == (8, 5)
    assert not {video.seed for video in validation} & {video.seed for video in test}
    assert [video.prompt for video in test] == [*TEST, *TEST, TEST[0]]
    assert len(planned_videos(with_test(tiny_pipeline_folder), "test")) == len(TEST)
    assert not any(video.is_shown for video in test)


def test_base_model_and_kept_adapter_are_tested_once_and_a_killed_test_is_repeated(
    tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    changes = {"evaluation": {"every": 1, "num_videos": 4, "num_test_videos": 4}}
    config, keeper = with_test(tiny_pipeline_folder, **changes), Keeper(tmp_path / "straight")
    experiment = build(config)
    before_test = tmp_path / "before_test"
    ended = list[list[torch.Tensor]]()

    def on_step(event: Any) -> None:
        keeper(event)
        if event.step == 2 and not event.is_test:
            (tmp_path / "straight" / "2").rename(before_test)
            ended.append([each.detach().clone() for each in experiment.model.adapter_parameters()])

    state = train(config, experiment, on_step=on_step)
    assert [event.is_test for event in keeper.reports] == [False, False, False, True]
    metrics = keeper.reports[-1].metrics
    assert state.test_metrics == metrics
    assert state.best_step > 0
    assert metrics["test/gain/brightness"] == pytest.approx(
        metrics["test/reward/brightness"] - metrics["test/base/reward/brightness"]
    )
    assert metrics["test/gain_low/brightness"] <= metrics["test/gain/brightness"]
    assert metrics["test/gain/metric/motion"] == pytest.approx(
        metrics["test/motion"] - metrics["test/base/motion"]
    )
    gains = state.test_prompt_gains["eval/reward/brightness"]
    assert len(gains) == len(config.prompts.test or ())
    assert np.mean(gains) == pytest.approx(metrics["test/gain/brightness"])
    assert metrics["test/base/distance_to_base"] == 0.0 < metrics["test/distance_to_base"]
    for own, later in zip(ended[0], experiment.model.adapter_parameters(), strict=True):
        assert torch.equal(own, later), "the adapter of the last step stays in the model"

    fresh = build(config)
    base = evaluate(config, fresh, WorkerGroup(), split="test")
    assert rewards(metrics, "test/base") == rewards(base.metrics, "eval")
    fresh.model.load_adapter(tmp_path / "straight" / "2" / "best_adapter")
    kept = evaluate(config, fresh, WorkerGroup(), base.base_features, split="test")
    assert rewards(metrics, "test") == rewards(kept.metrics, "eval")

    resumed = Keeper(tmp_path / "resumed")
    assert train(config, on_step=resumed, resume_from=before_test).test_metrics == metrics
    assert [event.is_test for event in resumed.reports] == [True], "the steps are not repeated"
    again = Keeper(tmp_path / "again")
    finished = train(config, on_step=again, resume_from=tmp_path / "straight" / "2")
    assert finished.test_metrics == metrics
    assert finished.test_prompt_gains == state.test_prompt_gains
    assert not again.reports, "nothing is computed twice"

    longer = config.model_copy(update={"num_steps": 3})
    after = train(longer, on_step=Keeper(tmp_path / "longer"), resume_from=tmp_path / "straight" / "2")
    assert after.step == 3
    assert after.test_metrics["test/base/objective"] == metrics["test/base/objective"]


def test_a_run_that_keeps_the_base_model_gains_nothing_and_one_without_test_prompts_has_no_test(
    tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    stopped = with_test(
        tiny_pipeline_folder,
        num_steps=3,
        guard=FIRING_GUARD | {"action": "stop"},
        evaluation={"every": 1, "num_videos": 4},
    )
    state = train(stopped, on_step=Keeper(tmp_path / "stopped"))
    assert (state.step, state.best_step) == (1, 0)
    assert state.test_metrics["test/gain/brightness"] == 0.0
    assert state.test_metrics["test/gain_high/brightness"] == 0.0
    assert state.test_metrics["test/reward/brightness"] == state.test_metrics["test/base/reward/brightness"]

    keeper = Keeper(tmp_path / "without")
    without = train(tiny_config(tiny_pipeline_folder, num_steps=1), on_step=keeper)
    assert without.test_metrics == {}
    assert not any(event.is_test for event in keeper.reports)
