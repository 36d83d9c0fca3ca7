"""The gradient of examples/minimal_vader.py, written with diffusers alone, equals the engine's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import TextToVideoSDPipeline

from examples import minimal_vader
from tests.helpers.tiny import SAMPLING, load_tiny
from vader_ray.alignment.algorithms.vader import accumulate_gradient
from vader_ray.alignment.reward_gradient import RewardTerm
from vader_ray.alignment.rollout import Batching, Rollout
from vader_ray.rewards.brightness import BrightnessReward
from vader_ray.types import TruncationPlan

PROMPTS, SEEDS = ["a red circle moving left", "a blue star moving up"], [3, 4]
NUM_STEPS = SAMPLING["num_inference_steps"]


def test_the_example_is_short() -> None:
    assert len(Path(minimal_vader.__file__).read_text().splitlines()) <= 120


@pytest.mark.parametrize("depth", [1, 3])
def test_its_gradient_equals_the_engines(
    tiny_pipeline_folder: Path, monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    monkeypatch.setattr(minimal_vader, "NUM_INFERENCE_STEPS", NUM_STEPS)
    monkeypatch.setattr(minimal_vader, "GUIDANCE_SCALE", SAMPLING["guidance_scale"])
    reward = BrightnessReward()
    model = load_tiny(tiny_pipeline_folder, precision="float64")
    pipe = TextToVideoSDPipeline.from_pretrained(tiny_pipeline_folder, torch_dtype=torch.float64)
    lora = minimal_vader.add_lora(pipe, rank=2, alpha=4)
    generator = torch.Generator().manual_seed(1)
    engines = dict(zip(_names(model.denoiser), model.adapter_parameters(), strict=True))
    examples = dict(zip(_names(pipe.unet), lora, strict=True))
    assert engines.keys() == examples.keys()
    for name, parameter in examples.items():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        engines[name].data.copy_(parameter.data)
    rollout = Rollout(PROMPTS, model.encode(PROMPTS), SEEDS, [[range(SAMPLING["num_frames"])] * 2])
    plan = TruncationPlan(NUM_STEPS, tuple(range(NUM_STEPS - depth, NUM_STEPS)))
    accumulate_gradient(model, [RewardTerm("brightness", reward)], rollout, plan, Batching(), scale=0.5)
    frames = minimal_vader.sample_frames(pipe, PROMPTS, model.noise(SEEDS), depth)
    (-reward(frames, PROMPTS).mean()).backward()
    for name, parameter in examples.items():
        error = (parameter.grad - engines[name].grad).norm() / engines[name].grad.norm()
        assert error < 1e-10, name


def _names(denoiser: torch.nn.Module) -> list[str]:
    names = [name for name, parameter in denoiser.named_parameters() if parameter.requires_grad]
    return [name.replace(".default", "") for name in names]
