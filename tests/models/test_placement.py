"""Devices and dtypes are looked up once, and still follow a network that is moved or cast."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.recipe import tiny_config
from tests.helpers.tiny import load_tiny
from vader_ray.models.core.placement import frozen_dtype, remember_placement
from vader_ray.training.checkpoint import State
from vader_ray.training.distributed import WorkerGroup
from vader_ray.training.experiment import build
from vader_ray.training.loop import make_optimizer
from vader_ray.training.step import train_step
from vader_ray.types import TruncationPlan


def test_a_step_walks_over_no_network(tiny_pipeline_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step looks devices and dtypes up; further steps walk over no network to its end."""
    config = tiny_config(tiny_pipeline_folder, videos_per_step=1)
    experiment = build(config)
    optimizer, state, walked = make_optimizer(config, experiment), State(), list[str]()
    named_modules = nn.Module.named_modules

    def counted(network: nn.Module, memo: Any = None, *args: Any, **named: Any) -> Iterator[Any]:
        yield from named_modules(network, memo, *args, **named)
        if memo is None:
            walked.append(type(network).__name__)

    for step in range(2):
        if step == 1:
            monkeypatch.setattr(nn.Module, "named_modules", counted)
        train_step(config, experiment, optimizer, WorkerGroup(), state, 0.0)
    assert set(walked) & {"UNet3DConditionModel", "AutoencoderKL"} == set()


def _network() -> AutoencoderKL:
    network = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    remember_placement(network)
    return network


def test_a_moved_or_cast_network_is_looked_up_again() -> None:
    network = _network()
    assert (network.device, network.dtype) == (torch.device("cpu"), torch.float32)
    network.to(torch.bfloat16)
    assert network.dtype == torch.bfloat16 == frozen_dtype(network.requires_grad_(False))
    network.to("meta")
    assert network.device == torch.device("meta")


def test_the_class_of_the_network_stays_its_own_for_diffusers(tmp_path: Path) -> None:
    network = _network()
    remember_placement(network)
    assert type(network).__name__ == "AutoencoderKL"
    network.save_pretrained(tmp_path)
    again = AutoencoderKL.from_pretrained(tmp_path)
    assert again.config["_class_name"] == "AutoencoderKL"
    assert type(again) is AutoencoderKL
    for same in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert type(same) is AutoencoderKL
        assert same.device == network.device
        assert all(map(torch.equal, same.parameters(), network.parameters()))


def test_the_prediction_of_a_skipped_step_is_never_computed(tiny_pipeline_folder: Path) -> None:
    model = load_tiny(tiny_pipeline_folder)
    plan = TruncationPlan(5, grad_steps=(4,))
    state = model.sample_prefix(conditioning := model.encode(["a red circle"]), plan, [3])
    operations = list[str]()

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            operations.append(str(func))
            return func(*args, **kwargs or {})

    with Recorder():  # type: ignore[no-untyped-call]
        model.sample_with_grad(state, conditioning, plan)
    assert operations.count("aten.empty_like.default") == 4  # the skipped steps
    assert "aten.zeros_like.default" not in operations
