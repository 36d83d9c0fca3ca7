"""`Trainer`: the plain Python loop computes what a recipe's worker computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.recipe import tiny_config
from tests.helpers.tiny import load_tiny
from vader_ray.training.callbacks import Callback
from vader_ray.training.events import StepEvent
from vader_ray.training.loop import train
from vader_ray.training.seeding import derive_seed
from vader_ray.training.trainer import Trainer

PROMPTS = ["a red circle moving left", "a blue star moving up", "a green square moving down"]


def contrast(frames: Tensor, prompts: list[str]) -> Tensor:
    return frames.flatten(2).std(2).mean(1)


def _trainer(folder: Path, **changes: Any) -> Trainer:
    model = load_tiny(folder, seed=derive_seed(0, "adapter"))
    settings: dict[str, Any] = {"learning_rate": 0.01, "num_steps": 3, "videos_per_step": 4}
    return Trainer(model, changes.pop("rewards", {"brightness": 1.0}), PROMPTS, **(settings | changes))


@pytest.mark.slow
def test_its_steps_equal_those_of_a_recipe(tiny_pipeline_folder: Path) -> None:
    trainer = _trainer(tiny_pipeline_folder)
    rewards = [step.reward for step in trainer]
    seen: list[StepEvent] = []
    adapter = {"rank": 2, "alpha": 4.0}
    config = tiny_config(tiny_pipeline_folder, num_steps=3, adapter=adapter)
    train(config, on_step=seen.append)
    # prompts are encoded in batches of another size, which rounds differently in float32
    assert rewards == pytest.approx([event.metrics["train/reward_mean"] for event in seen[1:]], rel=1e-6)


def test_functions_and_names_are_mixed_by_weight(tiny_pipeline_folder: Path) -> None:
    trainer = _trainer(tiny_pipeline_folder, rewards={"brightness": 2.0, contrast: 0.5}, num_steps=1)
    (step,) = trainer
    assert step.rewards.keys() == {"brightness", "contrast"}
    assert step.reward == pytest.approx(2.0 * step.rewards["brightness"] + 0.5 * step.rewards["contrast"])


@pytest.mark.slow
def test_a_loop_that_was_left_continues(tiny_pipeline_folder: Path) -> None:
    whole = [step.reward for step in _trainer(tiny_pipeline_folder)]
    trainer = _trainer(tiny_pipeline_folder)
    first = next(iter(trainer))
    assert [first.reward, *(step.reward for step in trainer)] == whole


@pytest.mark.slow
def test_callbacks_run_at_every_step_and_at_the_end(tiny_pipeline_folder: Path) -> None:
    called = list[Any]()

    class Recorder(Callback):
        def on_step_end(self, event: StepEvent) -> None:
            called.append(event.step)

        def on_train_end(self, result: Any) -> None:
            called.append(result)

    trainer = _trainer(tiny_pipeline_folder, callbacks=[Recorder()])
    list(trainer)
    assert called == [1, 2, 3, trainer]


def test_a_reward_without_gradient_is_refused(tiny_pipeline_folder: Path) -> None:
    def constant(frames: Tensor, prompts: list[str]) -> Tensor:
        return torch.zeros(len(frames))

    with pytest.raises(ValueError, match="reward 'constant' has no gradient"):
        _trainer(tiny_pipeline_folder, rewards={constant: 1.0})


def test_the_adapter_is_saved(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    trainer = _trainer(tiny_pipeline_folder, num_steps=1)
    list(trainer)
    again = load_tiny(tiny_pipeline_folder, seed=5)
    again.load_adapter(trainer.save_adapter(tmp_path / "adapter"))
    for one, other in zip(again.adapter_parameters(), trainer.model.adapter_parameters(), strict=True):
        assert torch.equal(one, other)
