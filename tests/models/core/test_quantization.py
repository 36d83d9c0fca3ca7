"""Quantized frozen weights: error of each format, gradient, memory of the graph, adapters and merging."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.helpers import videocrafter2_tiny as videocrafter2
from tests.helpers.families import CASES, save, save_images
from tests.helpers.family_runs import SEEDS, STEPS, encode_prompts, load_case
from tests.helpers.recipe import tiny_config
from tests.helpers.tiny import adapter_gradient
from vader_ray import models
from vader_ray.config import ModelConfig, Quantization, SamplingConfig, override
from vader_ray.errors import UserError
from vader_ray.models.core.quantization import (
    _NF4_LEVELS,
    QuantizedLinear,
    quantize,
    quantize_denoisers,
)
from vader_ray.models.videocrafter2.model import VideoCrafter2Model
from vader_ray.preflight.estimate import estimate_step
from vader_ray.preflight.trackers import PeakMemoryTracker
from vader_ray.training.inference import merge_adapter
from vader_ray.types import TruncationPlan

KINDS: dict[Quantization, tuple[float, float]] = {"int8": (0.009, 8.6), "fp8": (0.03, 8.6), "nf4": (0.1, 4.6)}
"""Largest relative error of normally distributed weights, and bits per weight of a layer of 512 inputs."""


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_near_the_published_ones_in_fewer_bits(kind: Quantization) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(512, 256).requires_grad_(False)
    linear.weight.normal_()
    quantized = QuantizedLinear(linear, kind)
    error, bits = KINDS[kind]
    assert 0 < (quantized.weight - linear.weight).norm() / linear.weight.norm() < error
    stored = sum(buffer.numel() * buffer.element_size() for buffer in quantized.buffers())
    assert 8 * stored / linear.weight.numel() < bits
    assert [name for name, _ in quantized.named_parameters()] == ["bias"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_weight_of_each_block_and_zeros_are_exact(kind: Quantization) -> None:
    linear = nn.Linear(64, 3, bias=False).requires_grad_(False)
    linear.weight.zero_()
    linear.weight[0, 7], linear.weight[1, 60] = -3.25, 0.5
    restored = QuantizedLinear(linear, kind).weight
    assert torch.allclose(restored, linear.weight, rtol=1e-6, atol=0)


def test_each_level_of_nf4_has_a_code_of_its_own() -> None:
    linear = nn.Linear(64, 1, bias=False).requires_grad_(False)
    linear.weight.data = torch.tensor(_NF4_LEVELS).repeat(4).view(1, 64) * 1.7
    assert torch.allclose(QuantizedLinear(linear, "nf4").weight, linear.weight, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("columns", [64, 48])
@pytest.mark.parametrize("kind", KINDS)
def test_output_and_gradient_are_those_of_the_restored_weights(kind: Quantization, columns: int) -> None:
    torch.manual_seed(0)
    quantized = QuantizedLinear(nn.Linear(columns, 10).requires_grad_(False), kind)
    inputs = torch.randn(3, 5, columns, dtype=torch.float64, requires_grad=True)
    dense = quantized.dense(torch.float64)
    output = quantized(inputs)
    expected = functional.linear(inputs, dense, quantized.bias.double())
    assert torch.equal(output, expected)
    weight = torch.randn_like(output)
    gradients = [torch.autograd.grad((each * weight).sum(), inputs)[0] for each in (output, expected)]
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_keeps_no_weights(kind: Quantization) -> None:
    layers = nn.Sequential(*(nn.Linear(256, 256) for _ in range(8))).requires_grad_(False)
    network = nn.Sequential(layers)
    quantize([network], kind)
    inputs = torch.randn(1, 256, requires_grad=True)
    dense = 4 * 256 * 256
    with PeakMemoryTracker() as meter:
        output = network(inputs)
        kept = meter.now
    assert kept < 0.5 * dense  # eight layers
    output.sum().backward()
    assert inputs.grad is not None


@pytest.mark.parametrize("family", ["wan", "svd"])
def test_a_models_gradient_is_that_of_the_restored_weights(tmp_path: Path, family: str) -> None:
    """Truncated sampling through quantized layers under an adapter, against dense layers of equal weights."""
    case = CASES[family]
    model = load_case(case, save(case, tmp_path), quantization="int8")
    layers = [layer for layer in model.denoiser.modules() if isinstance(layer, QuantizedLinear)]
    assert len(layers) >= 10
    quantized = _gradient(model, tmp_path)
    for layer in layers:
        dense = layer.weight

        def forward(inputs: Any, layer: QuantizedLinear = layer, dense: Any = dense) -> Any:
            return functional.linear(inputs, dense, layer.bias)

        layer.forward = forward  # type: ignore[method-assign,assignment]
    expected = _gradient(model, tmp_path)
    assert expected.norm() > 0
    assert (quantized - expected).norm() < 1e-5 * expected.norm()


def _gradient(model: Any, folder: Path) -> torch.Tensor:
    conditioning = encode_prompts(model, save_images(folder))
    plan = TruncationPlan(STEPS, (1, 2))
    state = model.sample_prefix(conditioning, plan, SEEDS)
    return adapter_gradient(model, model.sample_with_grad(state, conditioning, plan).double().sin().sum())


def test_a_pipeline_without_such_layers_is_refused() -> None:
    with pytest.raises(UserError, match="no linear layer was found in the denoiser's blocks of SimpleNames"):
        quantize_denoisers(SimpleNamespace(unet=nn.Conv3d(1, 1, 1)), "int8")


def test_videocrafter2_is_quantized_in_its_precision(tmp_path: Path) -> None:
    """Scales stay in float32, and nearly all of the denoiser is in its blocks."""
    model = VideoCrafter2Model.load(
        ModelConfig(
            family="videocrafter2",
            weights=str(videocrafter2.write_checkpoint(tmp_path, videocrafter2.random_weights())),
            precision="bfloat16",
            quantization="int8",
        ),
        SamplingConfig(**videocrafter2.SAMPLING),
        chunk_size=1,
        device=torch.device("cpu"),
    )
    layers = [layer for layer in model.denoiser.modules() if isinstance(layer, QuantizedLinear)]
    assert layers
    assert {layer.scales.dtype for layer in layers} == {torch.float32}
    assert {layer.weight.dtype for layer in layers} == {torch.bfloat16}
    (denoiser,) = [each for each in model.sharded_networks() if each.network is model.denoiser]
    assert denoiser.blocks == model.blocks()


@pytest.mark.slow
def test_preflight_counts_fewer_bytes_of_weights(tiny_pipeline_folder: Path) -> None:
    def weights(kind: Quantization | None) -> int:
        config = override(tiny_config(tiny_pipeline_folder), [f"model.quantization={kind or 'null'}"])
        return estimate_step(config).weights_bytes

    assert weights(None) > weights("nf4")


def test_an_adapter_is_merged_into_the_published_weights(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    merged = {}
    for kind in ("nf4", None):
        config = override(tiny_config(tiny_pipeline_folder), [f"model.quantization={kind or 'null'}"])
        if kind:
            model = models.build(
                config.model,
                config.sampling,
                config.adapter,
                seed=0,
                chunk_size=1,
                device=torch.device("cpu"),
            )
            model.save_adapter(tmp_path / "adapter")
        (folder,) = merge_adapter(config, tmp_path / "adapter", tmp_path / f"merged_{kind}")
        merged[kind] = (folder / "diffusion_pytorch_model.safetensors").read_bytes()
    assert merged["nf4"] == merged[None]
