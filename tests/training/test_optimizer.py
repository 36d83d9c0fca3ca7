"""Schedules, the average of the adapter's weights, and 8-bit Adam."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from tests.helpers.recipe import tiny_config
from tests.helpers.tiny import load_tiny
from tests.helpers.training import Keeper, file_contents
from vader_ray.config import OptimizerConfig
from vader_ray.errors import UserError
from vader_ray.training.callbacks import Callback
from vader_ray.training.events import StepEvent
from vader_ray.training.inference import evaluate_adapter
from vader_ray.training.loop import train
from vader_ray.training.optimizer import AdapterOptimizer, learning_rates
from vader_ray.training.trainer import Trainer

AVERAGED = {"learning_rate": 0.05, "schedule": "cosine", "warmup_steps": 1, "ema_decay": 0.5}
SHORT = {"num_steps": 4, "videos_per_step": 2, "evaluation": {"every": 4, "num_videos": 2, "num_shown": 1}}


@pytest.mark.parametrize(
    ("schedule", "warmup"), [("constant", 3), ("cosine", 0), ("cosine", 3), ("linear", 2)]
)
def test_schedules_are_those_of_transformers(schedule: Any, warmup: int) -> None:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(1))], lr=0.3)
    theirs = {
        "constant": lambda: get_constant_schedule_with_warmup(optimizer, warmup),
        "cosine": lambda: get_cosine_schedule_with_warmup(optimizer, warmup, 10),
        "linear": lambda: get_linear_schedule_with_warmup(optimizer, warmup, 10),
    }[schedule]()
    settings = OptimizerConfig(learning_rate=0.3, schedule=schedule, warmup_steps=warmup)
    mine = learning_rates(settings, num_steps=10)
    for step in range(10):
        assert mine(step) == optimizer.param_groups[0]["lr"]
        optimizer.step()
        theirs.step()


def test_a_constant_rate_is_the_settings_own() -> None:
    assert learning_rates(OptimizerConfig(learning_rate=0.1), num_steps=2)(10**6) == 0.1


def _gradients(parameters: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def _update(optimizer: AdapterOptimizer, parameters: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        optimizer.start_step(step)
        _gradients(parameters, step)
        optimizer.update()


def _weights() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(7)
    return [nn.Parameter(torch.randn(size, generator=generator)) for size in ((64, 80), (4, 3))]


def test_the_average_is_that_of_diffusers() -> None:
    parameters = _weights()
    optimizer = AdapterOptimizer(parameters, OptimizerConfig(learning_rate=0.1, ema_decay=0.4), num_steps=12)
    theirs = EMAModel(parameters, decay=0.4)
    for step in range(12):
        _update(optimizer, parameters, range(step, step + 1))
        theirs.step(parameters)
        trained = [parameter.detach().clone() for parameter in parameters]
        with optimizer.averaged_weights():
            for mine, other in zip(parameters, theirs.shadow_params, strict=True):
                torch.testing.assert_close(mine.detach(), other, rtol=1e-5, atol=1e-6)  # lerp rounds once
        assert all(torch.equal(mine, before) for mine, before in zip(parameters, trained, strict=True))


def _adapter(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def straight(tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Keeper:
    """A run of four steps, with its checkpoints."""
    keeper = Keeper(tmp_path_factory.mktemp("straight"))
    train(tiny_config(tiny_pipeline_folder, optimizer=AVERAGED, **SHORT), on_step=keeper)
    return keeper


def test_a_resumed_run_with_schedule_and_average_equals_the_straight_run_bit_for_bit(
    straight: Keeper, tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    config, resumed = tiny_config(tiny_pipeline_folder, optimizer=AVERAGED, **SHORT), Keeper(tmp_path)
    train(config, on_step=resumed, resume_from=straight.folder / "2")
    ends = straight.folder / "4", tmp_path / "4"
    for part in ("adapter", "raw_adapter", "best_adapter"):
        assert file_contents(ends[0] / part) == file_contents(ends[1] / part)
    assert (ends[0] / "optimizer.pt").read_bytes() == (ends[1] / "optimizer.pt").read_bytes()
    names = ("train/learning_rate", "train/reward_mean", "eval/objective")
    assert straight.metrics(*names)[3:] == resumed.metrics(*names)
    rates = [report.metrics["train/learning_rate"] for report in straight.reports[1:]]
    assert rates == pytest.approx([0, 0.05, 0.05 * 0.75, 0.05 * 0.25])


def test_evaluations_and_adapters_have_the_averaged_weights(
    straight: Keeper, tiny_pipeline_folder: Path
) -> None:
    config = tiny_config(tiny_pipeline_folder, optimizer=AVERAGED, **SHORT)
    evaluated = straight.reports[-1].metrics["eval/reward/brightness"]
    values = [
        evaluate_adapter(config, straight.folder / "4" / name)["eval/reward/brightness"]
        for name in ("adapter", "raw_adapter")
    ]
    assert values[0] == evaluated != values[1]


def test_the_average_does_not_change_training(
    straight: Keeper, tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    without = AVERAGED | {"ema_decay": 0.0, "schedule_steps": 4}
    config = tiny_config(tiny_pipeline_folder, optimizer=without, **SHORT | {"num_steps": 2})
    train(config, on_step=Keeper(tmp_path))
    plain, trained = _adapter(tmp_path / "2/adapter"), _adapter(straight.folder / "2/raw_adapter")
    assert all(torch.equal(plain[name], trained[name]) for name in plain)
    assert not (tmp_path / "2/raw_adapter").exists()


def test_a_trainer_decays_its_rate_and_saves_the_average(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    events, model = list[StepEvent](), load_tiny(tiny_pipeline_folder)

    class Recorder(Callback):
        def on_step_end(self, event: StepEvent) -> None:
            events.append(event)

    trainer = Trainer(
        model,
        {"brightness": 1.0},
        ["a red circle"],
        num_steps=2,
        learning_rate=0.1,
        schedule="linear",
        ema_decay=0.5,
        callbacks=[Recorder()],
    )
    list(trainer)
    assert [event.metrics["train/learning_rate"] for event in events] == pytest.approx([0.1, 0.05])
    saved = load_tiny(tiny_pipeline_folder, seed=5)
    saved.load_adapter(trainer.save_adapter(tmp_path / "adapter"))
    pairs = list(zip(saved.adapter_parameters(), model.adapter_parameters(), strict=True))
    assert any(not torch.equal(mine, trained) for mine, trained in pairs)
    with trainer.averaged_weights():
        assert all(torch.equal(mine, averaged) for mine, averaged in pairs)


def test_a_trainers_schedule_must_fit_its_steps(tiny_pipeline_folder: Path) -> None:
    with pytest.raises(UserError, match="warmup_steps=5 leaves no step for the decay, which ends at step 5"):
        Trainer(
            load_tiny(tiny_pipeline_folder), {"brightness": 1.0}, ["a"], num_steps=5, schedule="linear",
            warmup_steps=5,
        )  # fmt: skip


def _num_bytes(state: Any) -> int:
    """Bytes of the tensors of a weight's state, without the tables of values that all weights share."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    parts = state.items() if isinstance(state, dict) else ()
    return sum(_num_bytes(part) for name, part in parts if not name.startswith("qmap"))


def test_8_bit_adam_needs_a_quarter_of_the_memory_and_continues_exactly() -> None:
    pytest.importorskip("bitsandbytes", reason="pip install 'vader-ray[8bit]'")
    settings = OptimizerConfig(name="adamw8bit", learning_rate=0.01, ema_decay=0.9)
    straight, resumed, exact = _weights(), _weights(), _weights()
    optimizer = AdapterOptimizer(straight, settings, num_steps=8)
    _update(optimizer, straight, range(4))
    again = AdapterOptimizer(resumed, settings, num_steps=8)
    for parameter, source in zip(resumed, straight, strict=True):
        parameter.data.copy_(source.data)
    again.load_state_dict(optimizer.state_dict())
    for one, parameters in ((optimizer, straight), (again, resumed)):
        _update(one, parameters, range(4, 8))
    assert all(torch.equal(one, other) for one, other in zip(straight, resumed, strict=True))
    assert _num_bytes(optimizer.state_dict()["state"][0]) < 0.3 * 2 * 4 * straight[0].numel()
    _update(
        AdapterOptimizer(exact, settings.model_copy(update={"name": "adamw"}), num_steps=8), exact, range(8)
    )
    assert (straight[0] - exact[0]).abs().mean() < 0.1 * (exact[0] - _weights()[0]).abs().mean()


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_8_bit_adam_without_its_package_is_refused_with_the_command() -> None:
    with pytest.raises(UserError, match=r"needs the package bitsandbytes.*pip install 'vader-ray\[8bit\]'"):
        AdapterOptimizer(_weights(), OptimizerConfig(name="adamw8bit"), num_steps=1)
