"""The generic adapter against the pipeline's own output, and its pieces against the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from tests.helpers.tiny import SAMPLING, adapter_gradient, load_tiny, randomise_adapter
from vader_ray.types import GradStep, TruncationPlan

PROMPTS = ["a red circle moving left", "a blue star moving up"]
SEEDS = [3, 4]
SCHEDULERS = [
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "EulerDiscreteScheduler",
    "PNDMScheduler",
]


@pytest.mark.parametrize("scheduler", SCHEDULERS[:-1])
def test_video_equals_the_pipelines_own_output_bit_for_bit(
    tiny_pipeline_folder: Path, scheduler: str
) -> None:
    model = load_tiny(tiny_pipeline_folder, scheduler=scheduler)
    ours = model.decoder.decode(
        model.sample(model.encode(PROMPTS), SEEDS), None, tuple(range(SAMPLING["num_frames"]))
    )[0]
    oracle = diffusers.TextToVideoSDPipeline.from_pretrained(tiny_pipeline_folder)
    oracle.scheduler = getattr(diffusers, scheduler).from_config(oracle.scheduler.config)
    oracle.set_progress_bar_config(disable=True)
    for module in (oracle.unet, oracle.vae, oracle.text_encoder):
        module.requires_grad_(False)  # torch picks other CPU kernels for weights that require gradient
    theirs = oracle(PROMPTS, latents=model.noise(SEEDS), output_type="pt", **_call(SAMPLING)).frames
    assert torch.equal(ours, theirs)


def _call(sampling: dict[str, Any]) -> dict[str, Any]:
    names = ("num_frames", "height", "width", "num_inference_steps", "guidance_scale")
    return {name: sampling[name] for name in names}


def _whole_and_split(
    model: Any, graded: tuple[int, ...], seeds: list[int], **plan: Any
) -> tuple[Tensor, Tensor]:
    """Latents of uninterrupted sampling, and of prefix and finish."""
    conditioning = model.encode(PROMPTS)
    settings = TruncationPlan(model.sampling.num_inference_steps, graded, **plan)
    return model.sample(conditioning, seeds), model.sample_with_grad(
        model.sample_prefix(conditioning, settings, seeds), conditioning, settings
    )


@pytest.mark.parametrize("scheduler", SCHEDULERS[:-1])
@pytest.mark.parametrize("graded", [(4,), (2, 3, 4), (0, 1, 2, 3, 4), (1, 3), (2,)])
def test_prefix_and_finish_equal_uninterrupted_sampling_bit_for_bit(
    tiny_pipeline_folder: Path, scheduler: str, graded: tuple[int, ...]
) -> None:
    model = load_tiny(tiny_pipeline_folder, scheduler=scheduler)
    whole, split = _whole_and_split(model, graded, SEEDS)
    assert torch.equal(whole, split)
    assert split.requires_grad
    assert not whole.requires_grad


def test_step_noise_of_a_stochastic_scheduler_depends_on_the_video_alone(tiny_pipeline_folder: Path) -> None:
    model = load_tiny(tiny_pipeline_folder, eta=1.0, precision="float64")
    whole, split = _whole_and_split(model, (3, 4), SEEDS)
    assert torch.equal(whole, split)
    alone = model.sample(model.encode(PROMPTS[1:]), SEEDS[1:])
    torch.testing.assert_close(whole[1:], alone, rtol=1e-10, atol=1e-10)  # float64: only batching differs
    assert not torch.allclose(
        whole, load_tiny(tiny_pipeline_folder, precision="float64").sample(model.encode(PROMPTS), SEEDS)
    )


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_prefix_of_two_with_finish_of_one_equals_one_batch(
    tiny_pipeline_folder: Path, scheduler: str
) -> None:
    model = load_tiny(tiny_pipeline_folder, precision="float64", scheduler=scheduler)
    plan, conditioning = TruncationPlan(5, (3, 4)), model.encode(PROMPTS)
    state = model.sample_prefix(conditioning, plan, SEEDS)
    together = model.sample_with_grad(state, conditioning, plan)
    apart = [
        model.sample_with_grad(state[video : video + 1], conditioning[video : video + 1], plan)
        for video in range(2)
    ]
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("chain", [True, False])
@pytest.mark.parametrize("graded", [(4,), (3, 4), (0, 1, 2, 3, 4), (1, 3)])
def test_replay_is_exact(tiny_pipeline_folder: Path, graded: tuple[int, ...], chain: bool) -> None:
    gradients = []
    for recompute in (True, False):
        model = load_tiny(tiny_pipeline_folder, precision="float64")
        randomise_adapter(model)
        _, latents = _whole_and_split(
            model, graded, SEEDS, rules=(GradStep(float(chain)),) * len(graded), recompute=recompute
        )
        gradients.append(adapter_gradient(model, latents.square().sum()))
    assert torch.equal(*gradients)
    assert gradients[0].abs().max() > 0


def test_a_second_order_scheduler_is_refused(tiny_pipeline_folder: Path) -> None:
    model = load_tiny(tiny_pipeline_folder, scheduler="HeunDiscreteScheduler")
    with pytest.raises(
        ValueError, match=r"HeunDiscreteScheduler took 9 denoising steps .* choose a first-order scheduler"
    ):
        model.sample(model.encode(PROMPTS), SEEDS)


def test_eta_is_refused_where_it_means_nothing(tiny_pipeline_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"eta=0\.5 has no effect on EulerDiscreteScheduler"):
        load_tiny(tiny_pipeline_folder, scheduler="EulerDiscreteScheduler", eta=0.5)


def test_denoiser_calls_count_videos_and_guidance_branches_but_not_replays(
    tiny_pipeline_folder: Path,
) -> None:
    model = load_tiny(tiny_pipeline_folder)
    _, latents = _whole_and_split(model, (3, 4), SEEDS)
    latents.sum().backward()
    num_samplings, branches = 2, 2
    assert model.denoiser_calls == num_samplings * 5 * len(PROMPTS) * branches


def test_bfloat16_denoiser_keeps_float32_adapter_and_sampling_and_bfloat16_activations(
    tiny_pipeline_folder: Path,
) -> None:
    model = load_tiny(tiny_pipeline_folder, precision="bfloat16")
    seen = []
    model.denoiser.conv_out.register_forward_hook(lambda layer, inputs, output: seen.append(output.dtype))
    layer = next(module for name, module in model.denoiser.named_modules() if name.endswith("to_q"))
    layer.register_forward_hook(lambda layer, inputs, output: seen.extend((inputs[0].dtype, output.dtype)))
    _, latents = _whole_and_split(model, (4,), SEEDS)
    assert set(seen) == {torch.bfloat16}
    assert latents.dtype == torch.float32
    gradient = adapter_gradient(model, latents.square().sum())
    assert gradient.dtype == torch.float32
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0
