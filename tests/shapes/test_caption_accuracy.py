"""The metric of captions of the shapes data set, from the classifier to the logged numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers.training import Keeper
from vader_ray import metrics
from vader_ray.config import MetricConfig, load
from vader_ray.metrics.base import VideoMetric
from vader_ray.shapes.data import ATTRIBUTES, captions_of, draw_scenes, render, truthful
from vader_ray.training.loop import train
from vader_ray.training.resolve import resolve_names

SPEC = MetricConfig(metric="vader_ray.shapes.caption_accuracy")


def test_true_captions_are_found_and_swapped_ones_are_not() -> None:
    metric = metrics.build(SPEC, device="cpu")
    assert isinstance(metric, VideoMetric)
    metrics.check_contract(metric, num_frames=8, height=64, width=64)
    scenes = truthful(draw_scenes(24, torch.Generator().manual_seed(0)))
    frames, captions = render(scenes), captions_of(scenes)
    right = metric(frames, captions)
    wrong = metric(frames, captions[1:] + captions[:1])
    assert isinstance(right, dict)
    assert isinstance(wrong, dict)
    assert right.keys() == wrong.keys() == set(ATTRIBUTES)
    for attribute in right:
        assert right[attribute].mean() > wrong[attribute].mean()
        assert set(right[attribute].tolist()) <= {0.0, 1.0}
    with pytest.raises(ValueError, match="expected one shape out of"):
        metric(frames[:1], ["a dog"])


@pytest.mark.slow
def test_a_recipe_logs_it_and_the_guard_can_compare_it(tmp_path: Path) -> None:
    settings = [
        "num_steps=1", "videos_per_step=1", "prompts.test=null",
        "sampling.num_inference_steps=2", "evaluation.num_videos=2",
        "evaluation.num_shown=1", "guard.metrics=[eval/caption_accuracy/shape]",
    ]  # fmt: skip
    keeper = Keeper(tmp_path)
    train(resolve_names(load("shapes_hps", settings)), on_step=keeper)
    for event in keeper.reports:
        for attribute in ATTRIBUTES:
            assert 0 <= event.metrics[f"eval/caption_accuracy/{attribute}"] <= 1
        assert "guard/fall/caption_accuracy/shape" in event.metrics
