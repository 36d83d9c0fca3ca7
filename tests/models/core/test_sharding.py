"""Sharded weights: the latents bit for bit, the gradient up to the order of sums; one block in memory."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from tests.helpers import opensora_tiny as opensora
from tests.helpers import videocrafter2_tiny as videocrafter2
from tests.helpers.families import CASES, save, save_images
from tests.helpers.sharded import CPU, differentiate
from tests.helpers.tiny import adapter_gradient, load_tiny, randomise_adapter
from tests.helpers.workers import run_workers
from vader_ray.config import ActivationCheckpointing
from vader_ray.models.core.sharding import ShardedNetwork, local_bytes, outer_blocks
from vader_ray.models.core.sharding import is_sharded as is_sharded_network
from vader_ray.training.distributed import WorkerGroup
from vader_ray.types import TruncationPlan

ROUNDING = 0.02
"""Tolerance of a gradient in bfloat16, whose numbers have 8 bits."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "recompute", "checkpointing", "offload"),
    [
        pytest.param("svd", True, "none", False, marks=pytest.mark.chaos),
        pytest.param("animatediff", False, "block", False, marks=pytest.mark.chaos),
        ("cogvideox", True, "block", True),
        ("wan_a14b", True, "none", False),  # two denoisers
        pytest.param("wan_i2v", False, "none", True, marks=pytest.mark.chaos),  # float32 layers, one by one
        pytest.param("ltx", True, "attention", False, marks=pytest.mark.chaos),
        ("hunyuan_video", False, "none", False),  # two text encoders
        pytest.param("mochi", True, "none", False, marks=pytest.mark.chaos),
    ],
)
def test_a_sharded_model_is_the_whole_one(
    name: str, recompute: bool, checkpointing: ActivationCheckpointing, offload: bool, tmp_path: Path
) -> None:
    case = CASES[name]
    folder, images = save(case, tmp_path / "pipeline"), save_images(tmp_path)
    precision = "bfloat16" if name == "wan_i2v" else case.precision
    (tmp_path / "meetings").mkdir()
    settings = (name, folder, images, precision, recompute, checkpointing, offload)
    for whole, sharded in run_workers(differentiate, 2, tmp_path / "meetings", *settings):
        assert torch.equal(whole[0], sharded[0])
        assert torch.equal(whole[1], sharded[1])
        error = (whole[2] - sharded[2]).abs().max() / whole[2].abs().max()
        assert error < (ROUNDING if precision == "bfloat16" else case.tolerance)


class _Deep(nn.Module):
    """A network whose forward pass is recomputed in its backward pass, as in a gradient step."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(8))
        self.scale = nn.Parameter(torch.tensor(0.9), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        recomputed: Tensor = checkpoint(self._forward, inputs, use_reentrant=False)
        return recomputed

    def _forward(self, inputs: Tensor) -> Tensor:
        hidden: Tensor = self.first(inputs) * self.scale
        for layer in self.layers:
            hidden = layer(hidden).tanh()
        return hidden


@pytest.fixture
def alone() -> Iterator[WorkerGroup]:
    """A group of one worker; its process group ends with the test."""
    yield WorkerGroup()
    distributed.destroy_process_group()


def test_one_block_is_whole_at_a_time(alone: WorkerGroup) -> None:
    torch.manual_seed(0)
    network = _Deep().requires_grad_(False)
    plain, inputs = copy.deepcopy(network), torch.randn(2, 64, requires_grad=True)
    divided = ShardedNetwork(network, outer_blocks(network))
    block = 4 * (64 * 64 + 64)
    assert divided.frozen_bytes() == divided.share_bytes(1) == 9 * block
    assert divided.share_bytes(2) == 9 * block // 2
    assert divided.gathered_bytes() == (1 + 2 * 2) * block  # two copies of two blocks
    divided.shard(alone.mesh(1, CPU), CPU, offload=True)
    whole = list[int]()

    def count(*_: object) -> None:
        whole.append(sum(isinstance(layer.weight, DTensor) for layer in network.layers))

    for layer in network.layers:
        layer.register_forward_hook(lambda _layer, _inputs, output: output.register_hook(count) and None)
        layer.register_forward_pre_hook(count)
    found = torch.autograd.grad(network(inputs).sum(), inputs)[0]
    assert torch.equal(found, torch.autograd.grad(plain(inputs).sum(), inputs)[0])
    assert len(whole) >= 3 * 8  # forward, again, backward
    assert min(whole) >= 8 - 2  # the one that is computed, and the next one
    assert all(isinstance(layer.weight, DTensor) for layer in (network.first, *network.layers))


def test_freed_text_encoders_leave_no_weights(tiny_pipeline_folder: Path, alone: WorkerGroup) -> None:
    model = load_tiny(tiny_pipeline_folder)
    model.shard(alone.mesh(1, CPU), CPU, offload=False)
    weight = weakref.ref(next(model.pipe.text_encoder.parameters()).to_local().untyped_storage())
    model.encode(["a red circle"])
    model.free_text_encoders()
    assert weight() is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["videocrafter2", "opensora"])
def test_models_of_this_package_are_divided_by_their_own_blocks(
    tmp_path: Path, alone: WorkerGroup, name: str
) -> None:
    found = []
    weights = (
        opensora.write_weights(tmp_path)
        if name == "opensora"
        else videocrafter2.write_checkpoint(tmp_path, videocrafter2.random_weights())
    )
    for is_sharded in (False, True):
        model = (opensora if name == "opensora" else videocrafter2).load_tiny(weights)
        randomise_adapter(model)
        if is_sharded:
            model.shard(alone.mesh(1, CPU), CPU, offload=False)
            assert all(is_sharded_network(block) for block in model.blocks())
        last = model.sampling.num_inference_steps - 1
        conditioning, plan = model.encode(["a red circle"]), TruncationPlan(last + 1, (last - 1, last))
        state = model.sample_prefix(conditioning, plan, [3])
        latents = model.sample_with_grad(state, conditioning, plan)
        found.append((latents.detach(), adapter_gradient(model, latents.square().mean())))
    (whole, expected), (sharded, gradient) = found
    assert torch.equal(whole, sharded)
    assert (gradient - expected).norm() < 1e-5 * expected.norm()


def test_bytes_of_a_share(alone: WorkerGroup) -> None:
    network = nn.Linear(3, 5).requires_grad_(False)
    divided = ShardedNetwork(network, [])
    assert divided.share_bytes(2) == 4 * (3 * 3 + 3)  # three of five rows
    divided.shard(alone.mesh(1, CPU), CPU, offload=False)
    assert local_bytes(network.parameters()) == 4 * (5 * 3 + 5)
