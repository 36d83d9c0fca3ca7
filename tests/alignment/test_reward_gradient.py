"""The staged reward gradient equals one monolithic autograd graph; truncation equals its closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.linear import linear_model
from tests.helpers.nonlinear_rewards import REWARD_TERMS, FrameReward, objective_of
from tests.helpers.tiny import SAMPLING, load_tiny, randomise_adapter
from vader_ray.alignment.algorithms.vader import accumulate_gradient
from vader_ray.alignment.frames import choose_frames
from vader_ray.alignment.reward_gradient import RewardTerm, score_and_gradient
from vader_ray.alignment.rollout import Batching, Rollout
from vader_ray.alignment.scoring import score_only
from vader_ray.alignment.truncation import draw_plan
from vader_ray.config import SamplingConfig
from vader_ray.errors import RunFailed, UserError
from vader_ray.models.core.conditioning import Conditioning
from vader_ray.rewards import FunctionReward
from vader_ray.types import Frames, GradStep, Scores, TruncationPlan

PROMPTS = ["a red circle moving left", "a blue star moving up"]
SEEDS = [3, 4]
FRAMES = SAMPLING["num_frames"]


def _rollout(
    model: Any, terms: list[RewardTerm], seen: Sequence[Sequence[Sequence[int]]] | None = None
) -> Rollout:
    seen = seen or [[range(FRAMES)] * len(PROMPTS) for _ in terms]
    return Rollout(PROMPTS, model.encode(PROMPTS), SEEDS, seen)


def _staged(
    model: Any,
    terms: list[RewardTerm],
    plan: TruncationPlan,
    batching: Batching,
    reference_penalty: float = 0.0,
) -> tuple[Tensor, Tensor]:
    outcomes = accumulate_gradient(
        model,
        terms,
        _rollout(model, terms),
        plan,
        batching,
        scale=0.5,
        reference_penalty=reference_penalty,
    )
    objective = torch.cat([outcome.objective for outcome in outcomes])
    return objective, torch.cat([parameter.grad.flatten() for parameter in model.adapter_parameters()])


def _monolithic(
    model: Any, terms: list[RewardTerm], graded: Sequence[int], reference_weight: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Plain autograd through a hand-written loop and the whole decoder at once: no hook, no checkpoint, no
    pipeline."""
    unet, vae, scheduler = model.pipe.unet, model.pipe.vae, model.pipe.scheduler
    conditioning = model.encode(PROMPTS).tensors
    embeds = torch.cat([conditioning["negative_prompt_embeds"], conditioning["prompt_embeds"]])
    scheduler.set_timesteps(SAMPLING["num_inference_steps"])
    latents, distance = model.noise(SEEDS), torch.zeros((), dtype=torch.float64)
    for index, timestep in enumerate(scheduler.timesteps):
        with torch.set_grad_enabled(index in graded):
            predicted = unet(torch.cat([latents] * 2), timestep, embeds).sample
        if reference_weight and index in graded:
            with torch.no_grad(), model.without_adapter():
                base = unet(torch.cat([latents] * 2), timestep, embeds).sample
            distance = distance + (predicted - base).square().flatten(1).mean(dim=1).sum() / len(graded)
        unconditional, conditional = predicted.chunk(2)
        noise = unconditional + SAMPLING["guidance_scale"] * (conditional - unconditional)
        latents = scheduler.step(noise, timestep, latents).prev_sample
    images = vae.decode(latents.transpose(1, 2).flatten(0, 1) / vae.config.scaling_factor).sample
    frames = (images / 2 + 0.5).clamp(0, 1).unflatten(0, (len(PROMPTS), FRAMES))
    objective = objective_of(terms, frames, PROMPTS)
    loss = -0.5 * (objective.sum() - reference_weight * distance)
    gradients = torch.autograd.grad(
        loss, model.adapter_parameters(), allow_unused=True, materialize_grads=True
    )
    return objective.detach(), torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.parametrize("terms", REWARD_TERMS.values(), ids=REWARD_TERMS.keys())
@pytest.mark.parametrize(
    "graded", [(4,), (3, 4), (0, 1, 2, 3, 4), (1, 3)], ids=["K=1", "K=2", "K=N", "scattered"]
)
@pytest.mark.parametrize("batching", [Batching(2, 1, 1), Batching(1, 1, 2), Batching(2, 2, 3)], ids=str)
def test_staged_equals_monolithic(
    tiny_pipeline_folder: Path, terms: list[RewardTerm], graded: tuple[int, ...], batching: Batching
) -> None:
    model = load_tiny(tiny_pipeline_folder, precision="float64", chunk_size=batching.chunk)
    randomise_adapter(model)
    objective, gradient = _staged(model, terms, TruncationPlan(5, graded), batching)
    expected_objective, expected = _monolithic(model, terms, graded)
    torch.testing.assert_close(objective, expected_objective, rtol=1e-10, atol=1e-12)
    relative = (gradient - expected).norm() / expected.norm()
    assert relative < 1e-10
    assert expected.norm() > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "graded", [(4,), (3, 4), (0, 1, 2, 3, 4), (1, 3)], ids=["K=1", "K=2", "K=N", "scattered"]
)
@pytest.mark.parametrize(
    ("batching", "recompute"), [(Batching(2, 1, 1), True), (Batching(2, 2, 3), False)], ids=["one", "both"]
)
def test_the_penalty_of_the_distance_to_the_base_is_that_of_one_graph(
    tiny_pipeline_folder: Path, graded: tuple[int, ...], batching: Batching, recompute: bool
) -> None:
    model = load_tiny(tiny_pipeline_folder, precision="float64", chunk_size=batching.chunk)
    randomise_adapter(model)
    _, without = _monolithic(model, REWARD_TERMS["frame"], graded)
    _, expected = _monolithic(model, REWARD_TERMS["frame"], graded, reference_weight=3.0)
    _, gradient = _staged(
        model,
        REWARD_TERMS["frame"],
        TruncationPlan(5, graded, recompute=recompute),
        batching,
        reference_penalty=3.0,
    )
    assert (expected - without).norm() > 0.01 * without.norm()
    assert (gradient - expected).norm() < 1e-10 * expected.norm()


def test_truncation_changes_the_gradient(tiny_pipeline_folder: Path) -> None:
    """The early denoising steps carry gradient, which K = 1 cuts off and K = N keeps."""
    gradients = {}
    for depth in (1, 5):
        model = load_tiny(tiny_pipeline_folder, precision="float64")
        randomise_adapter(model)
        sampling = model.sampling.model_copy(update={"truncation_depth": depth})
        plan = draw_plan(sampling, torch.Generator())
        gradients[depth] = _staged(model, REWARD_TERMS["frame"], plan, Batching())[1]
    assert (gradients[1] - gradients[5]).norm() > 0.01 * gradients[5].norm()


def test_gradient_equals_finite_differences(tiny_pipeline_folder: Path) -> None:
    """float64, K = N, along a random direction; central differences of step 1e-5 are good to about 1e-7
    here."""
    model = load_tiny(tiny_pipeline_folder, precision="float64")
    randomise_adapter(model)
    terms, parameters = REWARD_TERMS["mix"], model.adapter_parameters()
    _, gradient = _staged(model, terms, TruncationPlan(5, (0, 1, 2, 3, 4)), Batching(2, 2, 3))
    direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pieces = direction.split([parameter.numel() for parameter in parameters])

    def objective(step: float) -> float:
        with torch.no_grad():
            for parameter, piece in zip(parameters, pieces, strict=True):
                parameter += step * piece.view_as(parameter)
            frames = model.decoder.decode(
                model.sample(model.encode(PROMPTS), SEEDS), None, tuple(range(FRAMES))
            )[0]
            for parameter, piece in zip(parameters, pieces, strict=True):
                parameter -= step * piece.view_as(parameter)
            return -0.5 * float(objective_of(terms, frames, PROMPTS).sum())

    numeric = (objective(1e-5) - objective(-1e-5)) / 2e-5
    assert numeric == pytest.approx(float(gradient @ direction), rel=1e-5)


@pytest.mark.parametrize("graded", [(3,), (2, 3), (0, 1, 2, 3), (1, 3)])
@pytest.mark.parametrize("chain", [True, False])
def test_truncated_gradient_of_a_linear_denoiser_has_its_closed_form(
    graded: tuple[int, ...], chain: bool
) -> None:
    """x₍ᵢ₊₁₎ = aᵢxᵢ + bᵢε, ε = θxᵢ, with DDIM's aᵢ = √(ᾱ′/ᾱ) and bᵢ = √(1−ᾱ′) − aᵢ√(1−ᾱ) (arXiv 2010.02502,
    Eq. 12).

    So ∂x₀/∂θ = Σ over graded i of bᵢxᵢ·Π over j > i of (aⱼ + θbⱼ where j is graded and chained, else aⱼ).
    """
    theta, model = 0.2, linear_model(0.2, 4, (1, 1, 1, 1))
    pipe = model.pipe
    rules = (GradStep(coupling=float(chain)),) * len(graded)
    plan, nothing = TruncationPlan(4, graded, rules), Conditioning({})
    latents = model.sample_with_grad(model.sample_prefix(nothing, plan, [5]), nothing, plan)
    (found,) = torch.autograd.grad(latents.sum(), pipe.transformer.theta)

    pipe.scheduler.set_timesteps(4)
    alphas = [float(pipe.scheduler.alphas_cumprod[timestep]) for timestep in pipe.scheduler.timesteps] + [1.0]
    a = [math.sqrt(after / now) for now, after in pairwise(alphas)]
    b = [
        math.sqrt(1 - after) - a_i * math.sqrt(1 - now)
        for a_i, (now, after) in zip(a, pairwise(alphas), strict=True)
    ]
    x = [float(model.noise([5]))]
    for a_i, b_i in zip(a, b, strict=True):
        x.append((a_i + b_i * theta) * x[-1])
    jacobian = [
        a_j + theta * b_j * (chain and j in graded) for j, (a_j, b_j) in enumerate(zip(a, b, strict=True))
    ]
    expected = sum(b[i] * x[i] * math.prod(jacobian[i + 1 :]) for i in graded)
    assert float(found) == pytest.approx(expected, rel=1e-5)  # the scheduler's tables are float32


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({"truncation": "last", "truncation_depth": 2}, (8, 9)),
        ({"truncation": "uniform", "truncation_depth": 5}, (1, 3, 5, 7, 9)),
        ({"truncation": "uniform", "truncation_depth": 3}, (2, 5, 9)),
        ({"truncation": "window", "truncation_depth": 3, "truncation_options": {"start": 4}}, (4, 5, 6)),
    ],
)
def test_plans(sampling: dict[str, Any], expected: tuple[int, ...]) -> None:
    config = SamplingConfig(num_frames=1, height=8, width=8, num_inference_steps=10, **sampling)
    assert draw_plan(config, torch.Generator()).grad_steps == expected


def test_random_truncation_draws_every_depth_up_to_k() -> None:
    config = SamplingConfig(
        num_frames=1, height=8, width=8, num_inference_steps=10, truncation="random", truncation_depth=4
    )
    drawn = {draw_plan(config, torch.Generator().manual_seed(seed)).grad_steps for seed in range(60)}
    assert drawn == {tuple(range(10 - depth, 10)) for depth in (1, 2, 3, 4)}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("all", (0, 1, 2, 3, 4, 5, 6, 7)),
        ("stride:2", (0, 2, 4, 6)),
        ("stride:5", (0, 5)),
        ("first:3", (0, 1, 2)),
        ("first_middle_last", (0, 4, 7)),
        ("frame:3", (3,)),
    ],
)
def test_frame_rules(rule: str, expected: tuple[int, ...]) -> None:
    assert choose_frames(rule, 8, torch.Generator()) == expected


def test_random_frames_are_distinct_and_uniform() -> None:
    drawn = [choose_frames("random:2", 4, torch.Generator().manual_seed(seed)) for seed in range(600)]
    assert all(first < second for first, second in drawn)
    assert all(
        240 < sum(frame in pair for pair in drawn) < 360 for frame in range(4)
    )  # mean 300, five deviations


@pytest.mark.slow
def test_random_frame_gradient_is_unbiased(tiny_pipeline_folder: Path) -> None:
    """The mean of the three one-frame gradients is the all-frames gradient."""

    def gradient(seen: list[int]) -> Tensor:
        model = load_tiny(tiny_pipeline_folder, precision="float64")
        terms = REWARD_TERMS["frame"]
        accumulate_gradient(
            model, terms, _rollout(model, terms, [[seen] * 2]), TruncationPlan(5, (4,)), Batching(), scale=1.0
        )
        return torch.cat([parameter.grad.flatten() for parameter in model.adapter_parameters()])

    singles = torch.stack([gradient([frame]) for frame in range(FRAMES)]).mean(dim=0)
    torch.testing.assert_close(singles, gradient(list(range(FRAMES))), rtol=1e-9, atol=1e-12)


def test_only_the_frames_that_are_seen_are_decoded(tiny_pipeline_folder: Path) -> None:
    model, decoded = load_tiny(tiny_pipeline_folder), []
    decode, terms = model.decoder.decode, REWARD_TERMS["frame"]

    def record_and_decode(latents: Tensor, state: Any, chunk: tuple[int, ...]) -> Any:
        decoded.append(chunk)
        return decode(latents, state, chunk)

    model.decoder.decode = record_and_decode
    accumulate_gradient(
        model,
        terms,
        _rollout(model, terms, [[[1], [1]]]),
        TruncationPlan(5, (4,)),
        Batching(2, 2, 3),
        scale=1.0,
    )
    assert set(decoded) == {(1,)}


class _WrongShape(FrameReward):
    def __call__(self, frames: Frames, prompts: Sequence[str]) -> Scores:
        return super().__call__(frames, prompts).mean()


class _NoGradient(FrameReward):
    def __call__(self, frames: Frames, prompts: Sequence[str]) -> Scores:
        return super().__call__(frames.detach(), prompts)


class _List(FrameReward):
    def __call__(self, frames: Frames, prompts: Sequence[str]) -> Scores:
        return super().__call__(frames, prompts).tolist()  # type: ignore[return-value]


class _Raising(FrameReward):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def __call__(self, frames: Frames, prompts: Sequence[str]) -> Scores:
        raise self.error


class _OwnError(BaseException):
    """No ``Exception``, so that ``except Exception`` lets it pass."""


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (_WrongShape(), r"returned shape \(\) for 2 videos; expected one score per video"),
        (_List(), "returned list; expected a tensor with one score per video"),
        (_NoGradient(), "has no gradient"),
        (_Raising(SystemExit(0)), f"raised SystemExit: 0 \\({__file__}:\\d+ in __call__\\)"),
        (_Raising(_OwnError("two\nlines")), f"raised _OwnError: two lines \\({__file__}:\\d+ in __call__"),
        (_Raising(ZeroDivisionError()), f"raised ZeroDivisionError \\({__file__}:\\d+ in __call__"),
    ],
)
def test_a_reward_that_breaks_its_contract_is_named(reward: FrameReward, message: str) -> None:
    with pytest.raises((UserError, RunFailed), match=f"reward 'mine' {message}"):
        score_and_gradient(reward, torch.rand(2, 3, 3, 8, 8), PROMPTS, 1, name="mine")


def test_ctrl_c_in_a_reward_passes_in_the_main_thread_alone() -> None:
    reward, frames = _Raising(KeyboardInterrupt()), torch.rand(2, 3, 3, 8, 8)
    with pytest.raises(KeyboardInterrupt):
        score_only(reward, frames, PROMPTS, 1)
    with ThreadPoolExecutor() as threads, pytest.raises(RunFailed, match="'mine' raised KeyboardInterrupt"):
        threads.submit(score_only, reward, frames, PROMPTS, 1, name="mine").result()


def test_the_line_of_an_error_in_a_library_is_that_of_the_reward() -> None:
    def wrong(frames: Frames, prompts: Sequence[str]) -> Scores:
        return torch.linalg.inv(frames)

    line = wrong.__code__.co_firstlineno + 1
    with pytest.raises(RunFailed, match=rf"raised \w+: .*\({__file__}:{line} in wrong\)"):
        score_only(FunctionReward(wrong), torch.rand(2, 3, 3, 8, 4), PROMPTS, 1, name="mine")
