"""The strength of an adapter at sampling, against scaled weights and the pipeline's own loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from tests.helpers.recipe import tiny_config
from tests.helpers.tiny import SAMPLING, load_tiny, randomise_adapter
from vader_ray.config import GenerationConfig
from vader_ray.errors import UserError
from vader_ray.models.adapters import lora
from vader_ray.models.core.adapter_strength import step_strengths
from vader_ray.training.inference import evaluate_adapter, generate_video

PROMPTS = ["a red circle moving left", "a blue star moving up"]
SEEDS, STEPS = [3, 4], SAMPLING["num_inference_steps"]


def _sample(model: Any, strengths: list[float] | None = None) -> Tensor:
    latents: Tensor = model.sample(model.encode(PROMPTS), SEEDS, strengths)
    return latents


def _scale_weights(denoiser: torch.nn.Module, originals: dict[str, Tensor], factor: float) -> None:
    """Multiply the second matrix of each layer's update, to which the update is proportional."""
    for name, parameter in denoiser.named_parameters():
        if "lora_B" in name:
            parameter.data = originals[name] * factor


def _second_matrices(denoiser: torch.nn.Module) -> dict[str, Tensor]:
    return {name: each.data.clone() for name, each in denoiser.named_parameters() if "lora_B" in name}


def test_full_strength_changes_no_bit(tiny_pipeline_folder: Path) -> None:
    model = load_tiny(tiny_pipeline_folder)
    randomise_adapter(model)
    assert torch.equal(_sample(model, [1.0] * STEPS), _sample(model))


def test_no_strength_is_the_pretrained_model(tiny_pipeline_folder: Path) -> None:
    model = load_tiny(tiny_pipeline_folder)
    base = _sample(model)  # a fresh adapter changes nothing
    randomise_adapter(model)
    assert torch.equal(_sample(model, [0.0] * STEPS), base)
    assert not torch.allclose(_sample(model), base, atol=1e-3)


def test_a_constant_strength_is_that_of_scaled_weights(tiny_pipeline_folder: Path) -> None:
    model = load_tiny(tiny_pipeline_folder, precision="float64")
    randomise_adapter(model)
    found, full = _sample(model, [0.7] * STEPS), _sample(model)
    _scale_weights(model.denoiser, _second_matrices(model.denoiser), 0.7)
    expected = _sample(model)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(found, full, atol=1e-3)


@pytest.mark.parametrize("strengths", [[0.0, 0.0, 0.5, 1.0, 1.0], [1.0, 0.3, 2.0, 0.0, 0.6]])
def test_a_schedule_is_the_pipelines_own_loop_with_other_weights_in_each_step(
    tiny_pipeline_folder: Path, tmp_path: Path, strengths: list[float]
) -> None:
    """The oracle is diffusers' loop, whose callback changes the weights between its steps."""
    model = load_tiny(tiny_pipeline_folder, precision="float64")
    randomise_adapter(model)
    model.save_adapter(tmp_path)
    pipe = diffusers.TextToVideoSDPipeline.from_pretrained(tiny_pipeline_folder, torch_dtype=torch.float64)
    pipe.set_progress_bar_config(disable=True)
    lora.load_into(pipe, tmp_path)
    originals = _second_matrices(pipe.unet)
    assert originals

    def set_strength(step: int, timestep: Any = None, latents: Any = None) -> None:
        if step + 1 < STEPS:
            _scale_weights(pipe.unet, originals, strengths[step + 1])

    set_strength(-1)
    names = ("num_frames", "height", "width", "num_inference_steps", "guidance_scale")
    call = {name: SAMPLING[name] for name in names}
    noise = model.noise(SEEDS)
    theirs = pipe(PROMPTS, latents=noise, output_type="latent", callback=set_strength, **call).frames
    expected = theirs / pipe.vae.config.scaling_factor  # the decoder's input
    # the weights of both are equal, and float64 rounds their products in another order
    torch.testing.assert_close(_sample(model, strengths), expected, rtol=1e-8, atol=1e-8)
    assert not torch.allclose(_sample(model), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (1.0, None),
        ([[0.2, 1.0], [0.8, 1.0]], None),
        (0.7, [0.7] * 5),
        ([[0.0, 0.0], [1.0, 1.0]], [0.0, 0.2, 0.4, 0.6, 0.8]),
        ([[0.3, 0.0], [0.5, 1.0]], [0.0, 0.0, 0.5, 1.0, 1.0]),
        ([[0.0, 1.0], [0.4, 0.0], [0.8, 2.0]], [1.0, 0.5, 0.0, 1.0, 2.0]),
        ([[0.5, 0.25]], [0.25] * 5),
    ],
)
def test_a_schedule_is_linear_between_its_points(given: Any, expected: list[float] | None) -> None:
    found = step_strengths(GenerationConfig(adapter_strength=given).adapter_strength, 5)
    assert found is expected or found == pytest.approx(expected)


@pytest.mark.slow
def test_evaluations_have_the_strength_and_the_base_model_has_none(
    tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    def config(strength: Any) -> Any:
        return tiny_config(tiny_pipeline_folder, generation={"adapter_strength": strength})

    model = load_tiny(tiny_pipeline_folder)
    randomise_adapter(model)
    model.save_adapter(tmp_path)
    name = "eval/reward/brightness"
    base = evaluate_adapter(config(1.0), None)[name]
    full, none, half = (evaluate_adapter(config(each), tmp_path)[name] for each in (1.0, 0.0, 0.5))
    assert none == base
    assert len({base, half, full}) == 3
    for function in (
        lambda: evaluate_adapter(config(0.5), None),
        lambda: generate_video(config([[0.0, 0.0], [0.5, 1.0]]), "a star", None, 0, tmp_path / "star.mp4"),
    ):
        with pytest.raises(UserError, match=r"generation.adapter_strength=.* none is given; name one"):
            function()


@pytest.mark.slow
def test_a_generated_video_has_the_strength(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    model = load_tiny(tiny_pipeline_folder)
    randomise_adapter(model)
    model.save_adapter(tmp_path / "adapter")

    def video(name: str, strength: float, adapter: Path | None) -> bytes:
        settings = {"adapter_strength": strength}
        config = tiny_config(tiny_pipeline_folder, generation=settings)
        generate_video(config, "a star", adapter, 0, tmp_path / name)
        return (tmp_path / name).read_bytes()

    base, none = video("base.mp4", 1.0, None), video("none.mp4", 0.0, tmp_path / "adapter")
    assert none == base
    assert video("full.mp4", 1.0, tmp_path / "adapter") != base
