"""Where the networks of rewards and metrics are during a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.helpers.moved_rewards import Moved
from tests.helpers.recipe import tiny_config
from tests.helpers.tiny import load_tiny
from vader_ray.config import RewardConfig
from vader_ray.errors import UserError
from vader_ray.preflight.estimate import estimate_step, num_bytes
from vader_ray.rewards import build as build_reward
from vader_ray.training.distributed import WorkerGroup
from vader_ray.training.evaluation import evaluate
from vader_ray.training.experiment import build, encode
from vader_ray.training.model_cache import ModelCache

REWARD = {"reward": "tests.helpers.moved_rewards.Moved"}
ON_DEVICE, TO_HOST = repr(torch.device("cpu")), repr("cpu")
"""Recorded moves to a run's device and to host memory."""


def test_networks_of_evaluations_are_on_the_device_only_while_one_runs(tiny_pipeline_folder: Path) -> None:
    config = tiny_config(
        tiny_pipeline_folder,
        rewards=[REWARD],
        eval_rewards=[REWARD | {"label": "heldout", "frames": "first:1"}],
        evaluation={"num_videos": 2},
    )
    experiment = build(config)
    trained, heldout = experiment.terms[0].reward, experiment.eval_terms[0].reward
    assert isinstance(trained, Moved)
    assert isinstance(heldout, Moved)
    assert heldout.moves[-1] == TO_HOST
    trained.moves.clear()
    heldout.moves.clear()
    evaluate(config, experiment, WorkerGroup())
    assert heldout.moves == [ON_DEVICE, "score", "score", TO_HOST]
    assert trained.moves == ["score", "score"]


def test_a_reward_that_only_evaluated_is_trained_by_the_next_run(tiny_pipeline_folder: Path) -> None:
    before = tiny_config(tiny_pipeline_folder, eval_rewards=[REWARD])
    after = tiny_config(tiny_pipeline_folder, rewards=[REWARD])
    cache = ModelCache()
    reward = build(before, cache=cache).eval_terms[0].reward
    assert isinstance(reward, Moved)
    assert reward.moves[-1] == TO_HOST
    trained: object = build(after, cache=cache).terms[0].reward
    assert trained is reward
    assert reward.moves[-1] == ON_DEVICE


def test_preflight_counts_networks_of_evaluations_in_evaluations_alone(tiny_pipeline_folder: Path) -> None:
    plain = tiny_config(tiny_pipeline_folder, rewards=[{"reward": "brightness"}])
    hps = {"reward": "hps", "weights": "shapes:hps"}
    heldout = plain.model_copy(update={"eval_rewards": (RewardConfig.model_validate(hps),)})
    network = build_reward(heldout.eval_rewards[0], device=torch.device("cpu"))
    assert isinstance(network, nn.Module)
    found, without = estimate_step(heldout), estimate_step(plain)
    assert found.weights_bytes == without.weights_bytes
    assert found.step_bytes == without.step_bytes
    assert found.evaluation_bytes >= without.evaluation_bytes + num_bytes([network])
    assert found.host_bytes >= num_bytes([network])


def test_prompts_with_and_without_an_image_are_refused_together(tiny_pipeline_folder: Path) -> None:
    """Training and validation prompts, each of which alone are all of one kind."""
    with pytest.raises(UserError, match="prompts: some have an image and some have none"):
        encode(load_tiny(tiny_pipeline_folder), ["cat.png | a cat", "a dog"])
