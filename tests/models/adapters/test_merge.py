"""Mixed adapters: the weighted sum of what peft says that each changes, and models at the ends and in
between."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet3DConditionModel
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from tests.helpers.tiny import load_tiny, randomise_adapter
from vader_ray.models import mix_adapters


@pytest.fixture
def adapters(tiny_pipeline_folder: Path, tmp_path: Path) -> list[Path]:
    model = load_tiny(tiny_pipeline_folder)
    for seed in (1, 2):
        randomise_adapter(model, seed)
        model.save_adapter(tmp_path / str(seed))
    return [tmp_path / "1", tmp_path / "2"]


def test_a_mix_changes_each_layer_by_the_weighted_sum_of_peft_s_changes(
    tiny_pipeline_folder: Path, adapters: list[Path], tmp_path: Path
) -> None:
    mix_adapters([(adapters[0], 0.25), (adapters[1], 1.5)], tmp_path / "mixed")
    plain = UNet3DConditionModel.from_pretrained(tiny_pipeline_folder / "unet")
    loaded = PeftModel.from_pretrained(plain, adapters[0], "one")
    loaded.load_adapter(adapters[1], "two")
    loaded.load_adapter(tmp_path / "mixed", "mixed")
    layers = [layer for layer in loaded.modules() if isinstance(layer, LoraLayer)]
    assert layers
    for layer in layers:
        one, two, mixed = (layer.get_delta_weight(name) for name in ("one", "two", "mixed"))
        assert one.abs().max() > 0
        torch.testing.assert_close(
            mixed, 0.25 * one + 1.5 * two, atol=1e-6, rtol=1e-5
        )  # float32 products of rank 4


def test_a_mix_of_one_samples_as_the_adapter_itself(
    tiny_pipeline_folder: Path, adapters: list[Path], tmp_path: Path
) -> None:
    from vader_ray.config import AdapterConfig, ModelConfig, SamplingConfig
    from vader_ray.models import adapter_shape, build

    mix_adapters([(adapters[0], 1.0), (adapters[1], 0.0)], tmp_path / "mixed")
    latents = []
    for folder in (adapters[0], tmp_path / "mixed"):
        shape: AdapterConfig = adapter_shape(folder)
        model = build(
            ModelConfig(family="modelscope", weights=str(tiny_pipeline_folder)),
            SamplingConfig(num_frames=3, height=8, width=8, num_inference_steps=5, guidance_scale=3.0),
            shape, seed=0, chunk_size=1, device=torch.device("cpu"),
        )  # fmt: skip
        model.load_adapter(folder)
        latents.append(model.sample(model.encode(["a red circle moving left"]), [3]))
    torch.testing.assert_close(
        *latents, atol=1e-4, rtol=1e-4
    )  # float32, another order of sums, five denoising steps


def test_adapters_of_other_layers_are_refused(adapters: list[Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = next(adapters[1].glob("*.safetensors"))
    weights = load_file(file)
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    layer = sorted(weights)[0].removesuffix(".lora_A.weight")
    for matrix in ("A", "B"):
        weights.pop(f"{layer}.lora_{matrix}.weight")
    save_file(weights, file, metadata)
    (adapters[1] / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"adapts other layers than that in .*/1: "):
        mix_adapters([(adapters[0], 0.5), (adapters[1], 0.5)], tmp_path / "mixed")
