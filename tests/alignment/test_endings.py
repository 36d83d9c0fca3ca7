"""Several endings of a video: the gradient of one graph, noise levels of the library, an unbiased mean."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from tests.helpers.linear import linear_model
from tests.helpers.nonlinear_rewards import REWARD_TERMS, objective_of
from tests.helpers.recipe import tiny_config
from tests.helpers.tiny import SAMPLING, load_tiny, randomise_adapter
from vader_ray.alignment import algorithms
from vader_ray.alignment.algorithms.vader import accumulate_gradient
from vader_ray.alignment.endings import ending_seed
from vader_ray.alignment.rollout import Batching, Rollout
from vader_ray.config import SamplingConfig
from vader_ray.errors import UserError
from vader_ray.models.core import transitions
from vader_ray.models.core.conditioning import Conditioning
from vader_ray.preflight.estimate import estimate_step
from vader_ray.training.checkpoint import State
from vader_ray.training.distributed import WorkerGroup
from vader_ray.training.experiment import build
from vader_ray.training.loop import make_optimizer
from vader_ray.training.step import train_step
from vader_ray.types import TruncationPlan

PROMPTS = ["a red circle moving left", "a blue star moving up"]
SEEDS, STEPS, FRAMES = [3, 4], 5, SAMPLING["num_frames"]


def _staged(model: Any, plan: TruncationPlan, batching: Batching) -> tuple[Tensor, Tensor]:
    rollout = Rollout(
        PROMPTS, model.encode(PROMPTS), SEEDS, [[range(FRAMES)] * 2 for _ in REWARD_TERMS["mix"]]
    )
    outputs = accumulate_gradient(model, REWARD_TERMS["mix"], rollout, plan, batching, scale=0.5)
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.adapter_parameters()])
    return torch.cat([output.objective for output in outputs]), gradient


def _monolithic(model: Any, depth: int, num_endings: int) -> tuple[Tensor, Tensor]:
    """One graph over all endings by a hand-written loop, and noise added by the formula of DDPM."""
    unet, vae, scheduler = model.pipe.unet, model.pipe.vae, model.pipe.scheduler
    conditioning = model.encode(PROMPTS).tensors
    embeds = torch.cat([conditioning["negative_prompt_embeds"], conditioning["prompt_embeds"]])
    scheduler.set_timesteps(STEPS)

    def denoise(latents: Tensor, first: int) -> Tensor:
        for index, timestep in list(enumerate(scheduler.timesteps))[first:]:
            with torch.set_grad_enabled(index >= STEPS - depth):
                unconditional, conditional = unet(torch.cat([latents] * 2), timestep, embeds).sample.chunk(2)
            noise = unconditional + SAMPLING["guidance_scale"] * (conditional - unconditional)
            latents = scheduler.step(noise, timestep, latents).prev_sample
        return latents

    ends = [denoise(model.noise(SEEDS), 0)]
    final, alphas = ends[0].detach(), scheduler.alphas_cumprod.double()
    now, after = alphas[int(scheduler.timesteps[STEPS - depth])], scheduler.final_alpha_cumprod.double()
    for ending in range(1, num_endings):
        generators = [torch.Generator().manual_seed(ending_seed(seed, ending)) for seed in SEEDS]
        by_frame = final.transpose(1, 2).shape[1:]  # the pipeline's layout of a step
        draws = torch.stack([torch.randn(by_frame, generator=each) for each in generators])
        level = (1 - now - now / after * (1 - after)).sqrt()
        ends.append(
            denoise((now / after).sqrt() * final + level * draws.transpose(1, 2).double(), STEPS - depth)
        )
    objective = torch.zeros(2, dtype=torch.float64)
    for latents in ends:
        images = vae.decode(latents.transpose(1, 2).flatten(0, 1) / vae.config.scaling_factor).sample
        frames = (images / 2 + 0.5).clamp(0, 1).unflatten(0, (2, FRAMES))
        objective = objective + objective_of(REWARD_TERMS["mix"], frames, PROMPTS) / num_endings
    gradients = torch.autograd.grad(-0.5 * objective.sum(), model.adapter_parameters())
    return objective.detach(), torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.parametrize(("depth", "batching"), [(1, Batching(2, 1, 1)), (2, Batching(2, 2, 3))])
def test_the_gradient_is_that_of_one_graph(
    tiny_pipeline_folder: Path, depth: int, batching: Batching
) -> None:
    model = load_tiny(tiny_pipeline_folder, precision="float64", chunk_size=batching.chunk)
    randomise_adapter(model)
    plan = TruncationPlan(STEPS, tuple(range(STEPS - depth, STEPS)), num_endings=3)
    calls = model.denoiser_calls
    objective, gradient = _staged(model, plan, batching)
    assert model.denoiser_calls - calls == 2 * 2 * (STEPS + 2 * depth)  # two videos, two guidance branches
    expected_objective, expected = _monolithic(model, depth, 3)
    torch.testing.assert_close(objective, expected_objective, rtol=1e-10, atol=1e-12)
    assert (gradient - expected).norm() < 1e-10 * expected.norm()
    _, single = _monolithic(model, depth, 1)
    assert (gradient - single).norm() > 0.001 * single.norm()


def test_one_ending_changes_no_bit(tiny_pipeline_folder: Path) -> None:
    gradients = []
    for plan in (TruncationPlan(STEPS, (4,)), TruncationPlan(STEPS, (4,), num_endings=1)):
        model = load_tiny(tiny_pipeline_folder)
        randomise_adapter(model)
        gradients.append(_staged(model, plan, Batching(2, 1, 1)))
    assert all(torch.equal(first, second) for first, second in zip(*gradients, strict=True))


@pytest.mark.slow
def test_noise_is_a_function_of_the_video_and_the_ending_alone(tiny_pipeline_folder: Path) -> None:
    """So a continued run repeats it: no generator of the process has an effect."""
    model, found = load_tiny(tiny_pipeline_folder), list[tuple[Tensor, Tensor]]()
    randomise_adapter(model)
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(_staged(model, TruncationPlan(STEPS, (4,), num_endings=3), Batching(2, 1, 1)))
        for parameter in model.adapter_parameters():
            parameter.grad = None
    assert all(torch.equal(first, second) for first, second in zip(*found, strict=True))


def test_the_mean_over_endings_is_unbiased() -> None:
    """x′ = (a + bθ)·x with x = √ᾱ·x₀ + √(1−ᾱ)·ε, so E[∂ Σx′²/∂θ] = 2(a + bθ)·b·Σ(ᾱ·x₀² + 1 − ᾱ)."""
    theta, side, num_endings = 0.2, 64, 8
    model, nothing = linear_model(theta, 4, (1, 1, side, side)), Conditioning({})
    plan = TruncationPlan(4, (3,), num_endings=num_endings)
    state = model.sample_prefix(nothing, plan, [5])
    seeds = [[ending_seed(5, ending)] for ending in range(1, num_endings)]
    first, *others = model.sample_endings(state, nothing, plan, seeds)
    total = torch.stack([latents.square().sum() for latents in others]).mean()
    (found,) = torch.autograd.grad(total, model.pipe.transformer.theta)
    scheduler = model.pipe.scheduler
    alpha = float(scheduler.alphas_cumprod[int(scheduler.timesteps[3])])
    a, b = 1 / math.sqrt(alpha), -math.sqrt(1 - alpha) / math.sqrt(alpha)
    squares = alpha * float(first.detach().square().sum()) + side * side * (1 - alpha)
    # a mean of 7 · 4096 squares: relative deviation of at most √(2/28672) = 0.8 %, four of them
    assert float(found) == pytest.approx(2 * (a + b * theta) * b * squares, rel=0.035)


SCHEDULERS = [
    DDIMScheduler(set_alpha_to_one=True),
    EulerDiscreteScheduler(timestep_spacing="leading"),
    EulerDiscreteScheduler(use_karras_sigmas=True, prediction_type="v_prediction"),
    FlowMatchEulerDiscreteScheduler(shift=3.0),
]


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda scheduler: type(scheduler).__name__)
@pytest.mark.parametrize("step", [0, 3, 4])
def test_noise_is_added_as_the_library_adds_it(scheduler: Any, step: int) -> None:
    scheduler.set_timesteps(5)
    final, noise = torch.randn(2, 1, 1, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    timestep = scheduler.timesteps[step : step + 1]
    add = scheduler.scale_noise if hasattr(scheduler, "scale_noise") else scheduler.add_noise
    given = (final, timestep, noise) if hasattr(scheduler, "scale_noise") else (final, noise, timestep.long())
    if isinstance(scheduler, EulerDiscreteScheduler):
        given = (final, noise, timestep)
    torch.testing.assert_close(transitions.renoised(scheduler, final, noise, step), add(*given))


def test_a_last_sample_that_is_not_clean_is_taken_to_the_level_of_the_step() -> None:
    """With unit variance before and after, added noise keeps the variance at 1."""
    scheduler = DDIMScheduler(set_alpha_to_one=False, steps_offset=1)
    scheduler.set_timesteps(5)
    final, noise = torch.randn(2, 100_000, generator=torch.Generator().manual_seed(0))
    mixed = transitions.renoised(scheduler, final, noise, 4)
    assert float(mixed.var()) == pytest.approx(1.0, abs=0.02)
    ratio = float((scheduler.alphas_cumprod[1] / scheduler.alphas_cumprod[0]).sqrt())
    assert float((mixed * final).mean() / final.square().mean()) == pytest.approx(ratio, abs=0.01)


def test_a_step_counts_each_ending_as_a_reward_query(tiny_pipeline_folder: Path) -> None:
    sampling = SAMPLING | {"num_endings": 3, "truncation_depth": 2}
    config = tiny_config(tiny_pipeline_folder, sampling=sampling, videos_per_step=2)
    experiment, state = build(config), State()
    metrics, queries = train_step(
        config, experiment, make_optimizer(config, experiment), WorkerGroup(), state, 0.0
    )
    assert (len(queries), state.reward_queries) == (2, 6)
    assert state.denoiser_calls == 2 * 2 * (STEPS + 2 * 2)
    assert metrics["train/reward_mean"] == sum(query.objective for query in queries) / 2


@pytest.mark.slow
def test_preflight_counts_the_calls_of_each_ending(tiny_pipeline_folder: Path) -> None:
    sampling = SAMPLING | {"num_endings": 3, "truncation_depth": 2}
    config = tiny_config(tiny_pipeline_folder, sampling=sampling, videos_per_step=2)
    assert estimate_step(config).denoiser_calls == 2 * 2 * (STEPS + 2 * 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"truncation": "uniform", "truncation_depth": 2},
            "truncation=uniform has gradient steps before them",
        ),
        ({"truncation_depth": 5}, "num_inference_steps=5 leaves none; lower truncation_depth"),
        ({"num_endings": 0}, "greater than 0"),
    ],
)
def test_settings_that_leave_nothing_to_repeat_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**SAMPLING | {"num_endings": 2} | changes)


def test_a_step_without_noise_to_add_is_refused() -> None:
    scheduler = DDIMScheduler(set_alpha_to_one=False, steps_offset=0)
    scheduler.set_timesteps(5)  # the last step starts at the noise level at which it ends
    with pytest.raises(
        UserError, match="before the last 1 denoising steps has no more noise than a finished"
    ):
        transitions.renoised(scheduler, torch.zeros(1), torch.ones(1), 4)


@pytest.mark.parametrize("scheduler", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_schedulers_with_a_memory_are_refused(tiny_pipeline_folder: Path, scheduler: str) -> None:
    sampling = SAMPLING | {"num_endings": 2, "scheduler": scheduler}
    with pytest.raises(
        UserError, match=f"not defined under {scheduler}: .* set sampling.scheduler to one of"
    ):
        build(tiny_config(tiny_pipeline_folder, sampling=sampling))


def test_other_algorithms_are_refused(tiny_pipeline_folder: Path) -> None:
    config = tiny_config(
        tiny_pipeline_folder, sampling=SAMPLING | {"num_endings": 2, "eta": 1.0}, algorithm={"name": "ddpo"}
    )
    with pytest.raises(UserError, match=r"sampling.num_endings=2 has no effect on algorithm.name=ddpo"):
        algorithms.check(config)
