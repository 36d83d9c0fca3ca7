"""Every backward path against autograd of its paper's surrogate, written here with a plain loop; float64."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import diffusers as d
import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.plain_pipelines import NETWORKS, SCHEDULERS, conditioning, decoded, plain_model
from vader_ray.alignment import algorithms
from vader_ray.alignment.algorithms.vader import accumulate_gradient
from vader_ray.alignment.backward_paths import BackwardPath, PathContext
from vader_ray.alignment.reward_gradient import RewardTerm
from vader_ray.alignment.rollout import Batching, Rollout
from vader_ray.alignment.truncation import check_plan, draw_plan
from vader_ray.config import SamplingConfig, load
from vader_ray.errors import RunFailed, UserError
from vader_ray.types import Frames, GradStep, Granularity, Scores, TruncationPlan

SEEDS = [3, 4]
SCALE = 0.5
PENALTY = 3.0
Predictions: TypeAlias = Callable[[int, Tensor], Tensor]

PATHS: dict[str, dict[str, Any]] = {
    "last": {"truncation_depth": 3},
    "drtune": {"truncation_depth": 3},
    "refl": {},
    "sparse": {"truncation_depth": 3},
    "bridge": {"truncation_depth": 4},
    "leap": {},
    "lagrange": {},
    "velocity_matching": {"truncation_depth": 3, "guidance_scale": 1.0},
    "ode_adjoint": {"truncation_depth": 3},
}


class _Torch:
    """torch, for which float32 is float64."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@pytest.fixture(autouse=True)
def float64_schedulers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's schedulers convert samples and tables to float32; here they compute in float64."""
    for name in (
        "ddim",
        "euler_discrete",
        "flow_match_euler_discrete",
        "unipc_multistep",
        "dpmsolver_multistep",
    ):
        module = importlib.import_module(f"diffusers.schedulers.scheduling_{name}")
        monkeypatch.setattr(module, "torch", _Torch())


class ClipScore:
    """A nonlinear score of a video's frames; counts the videos."""

    granularity: Granularity = "clip"
    unit = ""

    def __init__(self) -> None:
        self.num_videos = 0

    def __call__(self, frames: Frames, prompts: Any) -> Scores:
        self.num_videos += len(frames)
        return score(frames)


def score(frames: Frames) -> Scores:
    weights = torch.linspace(-1, 2, frames[0].numel(), dtype=frames.dtype).view_as(frames[0])
    return (weights * frames + frames.square() * frames.roll(1, dims=3)).flatten(1).sum(dim=1)


def staged(model: Any, plan: TruncationPlan, reference_penalty: float = 0.0, micro: int = 1) -> Tensor:
    """The project's gradient."""
    for parameter in model.adapter_parameters():
        parameter.grad = None
    rollout = Rollout(["a", "b"], conditioning(2), SEEDS, [[range(2)] * 2])
    terms = [RewardTerm("score", ClipScore())]
    batching = Batching(2, micro, 2)
    accumulate_gradient(
        model, terms, rollout, plan, batching, scale=SCALE, reference_penalty=reference_penalty
    )
    return torch.cat([parameter.grad.flatten() for parameter in model.adapter_parameters()])


def plan_of(model: Any, name: str, seed: int, **changes: Any) -> TruncationPlan:
    """The project's plan of one training step."""
    model.sampling = model.sampling.model_copy(update={"truncation": name, **changes})
    generator = torch.Generator().manual_seed(seed)
    return draw_plan(model.sampling, generator, lambda: model.sampling_schedule(conditioning(1)))


def _embeds() -> Tensor:
    embeds = conditioning(2).tensors["embeds"]
    assert isinstance(embeds, Tensor)
    return embeds


class Chain:
    """Sampling by a plain loop, and its samples and predictions without gradient."""

    def __init__(self, model: Any) -> None:
        self.model, self.pipe = model, model.pipe
        embeds = _embeds()
        self.embeds, self.noise = torch.cat([-embeds, embeds]), model.noise(SEEDS)
        self.num_steps = model.sampling.num_inference_steps
        with torch.no_grad():
            self.samples, self.predictions = self.run(self.predict)

    def predict(self, step: int, sample: Tensor) -> Tensor:
        predicted: Tensor = self.pipe.predict(sample, step, self.embeds, self.model.sampling.guidance_scale)
        return predicted

    def base(self, step: int, sample: Tensor) -> Tensor:
        with self.model.without_adapter():
            return self.predict(step, sample)

    def run(self, predictions: Predictions) -> tuple[list[Tensor], list[Tensor]]:
        """The samples before each step and after the last, and the predictions."""
        scheduler = self.pipe.scheduler
        scheduler.set_timesteps(self.num_steps)
        if hasattr(scheduler, "is_scale_input_called"):
            scheduler.is_scale_input_called = True
        samples, found = [self.noise], list[Tensor]()
        for step, timestep in enumerate(scheduler.timesteps):
            found.append(predictions(step, samples[-1]))
            samples.append(scheduler.step(found[-1], timestep, samples[-1]).prev_sample)
        return samples, found

    def coefficients(self) -> list[float]:
        """∂(last sample)/∂(prediction of a step), by autograd of the scheduler alone."""
        leaves = [each.clone().requires_grad_() for each in self.predictions]
        samples, _ = self.run(lambda step, sample: leaves[step])
        gradients = torch.autograd.grad(samples[-1].sum(), leaves)
        return [float(gradient.flatten()[0]) for gradient in gradients]

    def held(self, weights: dict[int, dict[int, float]]) -> Tensor:
        """The last sample if predictions are replaced by combinations of others."""
        replaced = {
            step: sum(
                (factor * self.predictions[source] for source, factor in row.items()), torch.zeros(1).double()
            )
            for step, row in weights.items()
        }
        return self.run(lambda step, sample: replaced.get(step, self.predictions[step]))[0][-1]

    def clean(self, step: int, predicted: Tensor, sample: Tensor) -> Tensor:
        """The scheduler's own one-step prediction of the clean latents."""
        scheduler = type(self.pipe.scheduler).from_config(self.pipe.scheduler.config)
        scheduler.set_timesteps(self.num_steps)
        scheduler._step_index, scheduler.is_scale_input_called = step, True
        if hasattr(scheduler, "sigmas"):
            scheduler.sigmas = scheduler.sigmas.double()
        if isinstance(scheduler, d.FlowMatchEulerDiscreteScheduler):
            return sample - scheduler.sigmas[step] * predicted
        if hasattr(scheduler, "convert_model_output"):
            clean: Tensor = scheduler.convert_model_output(predicted, sample=sample)
            return clean
        result = scheduler.step(predicted, scheduler.timesteps[step], sample)
        return result.pred_original_sample

    def noise_levels(self) -> list[float]:
        """Noise's share of the samples before each step, from the tables of the schedulers."""
        scheduler = self.pipe.scheduler
        if isinstance(scheduler, d.DDIMScheduler):
            alphas = [float(scheduler.alphas_cumprod[each]) for each in scheduler.timesteps]
            return [(1 - each) ** 0.5 / (each**0.5 + (1 - each) ** 0.5) for each in alphas]
        sigmas = [float(each) for each in scheduler.sigmas[:-1]]
        is_flow = "flow" in str(scheduler.config.get("prediction_type", "flow"))
        return sigmas if is_flow else [each / (1 + each) for each in sigmas]


def straight(value: Tensor, factor: float) -> Tensor:
    """The value, with a scaled gradient."""
    return value.detach() + factor * (value - value.detach())


def mixed(sample: Tensor, coupling: float) -> Tensor:
    return coupling * sample + (1 - coupling) * sample.detach()


def gradient_of(model: Any, last: Tensor, weights: Tensor | None = None) -> Tensor:
    """−SCALE · ∂(weighted sum of the scores of decoded latents)/∂adapter."""
    scores = score(decoded(last))
    return gradient_of_loss(model, -SCALE * (scores if weights is None else weights * scores).sum())


def gradient_of_loss(model: Any, loss: Tensor) -> Tensor:
    gradients = torch.autograd.grad(
        loss, model.adapter_parameters(), allow_unused=True, materialize_grads=True
    )
    return torch.cat([each.flatten() for each in gradients])


def total(values: Iterable[float]) -> float:
    return sum(abs(each) for each in values)


def surrogate_last(chain: Chain, plan: TruncationPlan) -> Tensor:
    """DRaFT-K: the sampling itself, without gradient in the earlier predictions."""
    first = chain.num_steps - 3
    assert plan.grad_steps == tuple(range(first, chain.num_steps))
    samples, _ = chain.run(lambda k, x: chain.predict(k, x) if k >= first else chain.predictions[k])
    return gradient_of(chain.model, samples[-1])


def surrogate_sparse(chain: Chain, plan: TruncationPlan) -> Tensor:
    """FlowBP-Sparse: the cached predictions, new ones at the cached samples in the chosen steps."""
    coefficients, chosen = chain.coefficients(), plan.grad_steps
    factor = total(coefficients) / total(coefficients[k] for k in chosen)
    active = {k: straight(chain.predict(k, chain.samples[k]), factor) for k in chosen}
    samples, _ = chain.run(lambda k, x: active.get(k, chain.predictions[k]))
    return gradient_of(chain.model, samples[-1])


def surrogate_bridge(chain: Chain, plan: TruncationPlan) -> Tensor:
    """FlowBP-Bridge: as Sparse, and the input of step j is α x_j + (1 − α) x_j without gradient."""
    coefficients, chosen = chain.coefficients(), plan.grad_steps
    (middle,) = [k for k in chosen if plan.rule(k).coupling]
    assert chosen[0] < middle
    factor = total(coefficients) / total(coefficients[k] for k in chosen)

    def predict(step: int, sample: Tensor) -> Tensor:
        if step not in chosen:
            return chain.predictions[step]
        inputs = mixed(sample, 0.1) if step == middle else chain.samples[step]
        return straight(chain.predict(step, inputs), factor)

    return gradient_of(chain.model, chain.run(predict)[0][-1])


def intervals_of(chain: Chain, first: int, second: int, order: int) -> list[dict[int, float]]:
    """Weights of the supports of [first, second) and [second, N), by Gauss quadrature of the Lagrange
    polynomials in the sum of the coefficients, the noise level of a flow."""
    levels = np.concatenate([[0.0], np.cumsum(chain.coefficients())])
    nodes, weights = np.polynomial.legendre.leggauss(4)
    found = []
    for start, end in ((first, second), (second, chain.num_steps)):
        length = end - start
        supports = [start]
        if order == 3:
            supports = (
                list(range(start, end)) if length <= 3 else [start, start + round((length - 1) / 2), end - 1]
            )
        at = (levels[start] + levels[end]) / 2 + (levels[end] - levels[start]) / 2 * nodes
        row = {}
        for support in supports:
            values = np.ones_like(at)
            for other in supports:
                if other != support:
                    values *= (at - levels[other]) / (levels[support] - levels[other])
            row[support] = float((weights * values).sum() * (levels[end] - levels[start]) / 2)
        found.append(row)
    return found


def surrogate_of_intervals(
    chain: Chain, plan: TruncationPlan, order: int, coupling: float, rescale: float, minimum: float
) -> Tensor:
    """LeapAlign and FlowBP-Lagrange under any scheduler: predictions of two intervals are replaced."""
    first, second = plan.grad_steps[0], next(k for k in plan.grad_steps if plan.rule(k).coupling)
    coefficients, factors, distances = chain.coefficients(), dict[int, float](), []
    for row, end in zip(intervals_of(chain, first, second, order), (second, chain.num_steps), strict=True):
        active = list(row)[:2]
        factor = 1 + rescale * (total(row.values()) / total(row[k] for k in active) - 1)
        start = active[0]
        for support in active:
            own = 1 if support == start else 0.25
            factors[support] = own * factor * row[support] / coefficients[support]
        length = sum(coefficients[start:end])
        spread = {k: weight / length for k, weight in row.items()}
        changed = chain.held(dict.fromkeys(range(start, end), spread)) - chain.samples[-1]
        distances.append(changed.abs().flatten(1).mean(dim=1).clamp(min=minimum))
    assert plan.grad_steps == tuple(sorted(factors))

    def predict(step: int, sample: Tensor) -> Tensor:
        if step not in factors:
            return chain.predictions[step]
        inputs = mixed(sample, coupling) if step == second else chain.samples[step]
        return straight(chain.predict(step, inputs), factors[step])

    return gradient_of(chain.model, chain.run(predict)[0][-1], 1 / torch.stack(distances).sum(dim=0))


def surrogate_leap(chain: Chain, plan: TruncationPlan) -> Tensor:
    return surrogate_of_intervals(chain, plan, order=1, coupling=0.3, rescale=0.0, minimum=0.1)


def surrogate_lagrange(chain: Chain, plan: TruncationPlan) -> Tensor:
    return surrogate_of_intervals(chain, plan, order=3, coupling=0.1, rescale=0.5, minimum=0.2)


def surrogate_prediction(chain: Chain, plan: TruncationPlan) -> Tensor:
    """DRTune and ReFL: stopped inputs, and the reward of the one-step prediction of the last step."""
    samples, found = chain.run(
        lambda k, x: chain.predict(k, chain.samples[k]) if k in plan.grad_steps else chain.predictions[k]
    )
    stop = plan.reward_step
    assert stop is not None
    return gradient_of(chain.model, chain.clean(stop, found[stop], samples[stop]))


def surrogate_velocity_matching(chain: Chain, plan: TruncationPlan) -> Tensor:
    """RSM: squared distance to the base model's prediction minus the weighted gradient at the end."""
    last = chain.samples[-1].clone().requires_grad_()
    (reward_gradient,) = torch.autograd.grad(score(decoded(last)).sum(), last)
    count, size = len(plan.grad_steps), last[0].numel()
    strength = count * size / (2 * PENALTY)
    loss = torch.zeros((), dtype=torch.float64)
    for k in plan.grad_steps:
        weight = strength * (1 - chain.noise_levels()[k])
        with torch.no_grad():
            target = chain.base(k, chain.samples[k]) - weight * reward_gradient
        squares = (chain.predict(k, chain.samples[k]) - target).square().flatten(1).mean(dim=1)
        loss = loss + SCALE * PENALTY / count * squares.sum()
    return gradient_of_loss(chain.model, loss)


def surrogate_ode_adjoint(chain: Chain, plan: TruncationPlan) -> Tensor:
    """ODE-AM-K: the gradient reaches earlier steps through the base model."""

    def predict(step: int, sample: Tensor) -> Tensor:
        if step not in plan.grad_steps:
            return chain.predictions[step]
        base = chain.base(step, sample)
        return chain.predict(step, chain.samples[step]) + base - base.detach()

    return gradient_of(chain.model, chain.run(predict)[0][-1])


SURROGATES: dict[str, Callable[[Chain, TruncationPlan], Tensor]] = {
    "last": surrogate_last,
    "drtune": surrogate_prediction,
    "refl": surrogate_prediction,
    "sparse": surrogate_sparse,
    "bridge": surrogate_bridge,
    "leap": surrogate_leap,
    "lagrange": surrogate_lagrange,
    "velocity_matching": surrogate_velocity_matching,
    "ode_adjoint": surrogate_ode_adjoint,
}


def _close(found: Tensor, expected: Tensor) -> None:
    assert expected.norm() > 0
    assert (found - expected).norm() <= 1e-10 * expected.norm()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", PATHS)
def test_every_path_is_the_gradient_of_its_surrogate(network: str, scheduler: str, name: str) -> None:
    settings = dict(PATHS[name])
    guidance = settings.pop("guidance_scale", 3.0)
    model = plain_model(network, scheduler, num_steps=6, guidance_scale=guidance)
    plan = plan_of(model, name, seed=11, **settings)
    chain, penalty = Chain(model), PENALTY * (name == "velocity_matching")
    _close(staged(model, plan, penalty), SURROGATES[name](chain, plan))


def connected(
    chain: Chain, plan: TruncationPlan, weights: list[dict[int, float]], rescale: float, coupling: float
) -> tuple[Tensor, list[Tensor]]:
    """The connectors of LeapAlign's and FlowBP-Lagrange's code for a flow and Euler's method, word by word:
    two jumps, each with the value of the sampled video; and the distances of the jumps from it."""
    first, second = plan.grad_steps[0], next(k for k in plan.grad_steps if plan.rule(k).coupling)
    sample, distances = chain.samples[first], list[Tensor]()
    for row, start, end in zip(weights, (first, second), (second, chain.num_steps), strict=True):
        active = list(row)[:2]
        factor = 1 + rescale * (total(row.values()) / total(row[k] for k in active) - 1)
        reached = sample
        for support, weight in row.items():
            inputs = mixed(sample, coupling if start == second else 0) if support == start else None
            velocity = chain.predictions[support]
            if inputs is not None:
                velocity = chain.predict(support, inputs)
            elif support in active:
                velocity = straight(chain.predict(support, chain.samples[support]), 0.25)
            reached = reached + weight * straight(velocity, factor if support in active else 0.0)
        distances.append((reached - chain.samples[end]).abs().flatten(1).mean(dim=1).detach())
        sample = reached + (chain.samples[end] - reached).detach()
    return sample, distances


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("name", "order", "coupling", "rescale", "minimum"),
    [("leap", 1, 0.3, 0.0, 0.1), ("lagrange", 3, 0.1, 0.5, 0.2)],
)
def test_two_jumps_of_a_flow_are_those_of_the_authors_code(
    network: str, seed: int, name: str, order: int, coupling: float, rescale: float, minimum: float
) -> None:
    model = plain_model(network, "flow", num_steps=12)
    plan = plan_of(model, name, seed)
    chain = Chain(model)
    first, second = plan.grad_steps[0], next(k for k in plan.grad_steps if plan.rule(k).coupling)
    sigmas = [float(each) for each in model.pipe.scheduler.sigmas]
    torch.testing.assert_close(chain.coefficients(), list(np.diff(sigmas)))
    weights = intervals_of(chain, first, second, order)
    if name == "leap":
        expected = [{first: sigmas[second] - sigmas[first]}, {second: -sigmas[second]}]
        torch.testing.assert_close(weights, expected)
    last, distances = connected(chain, plan, weights, rescale, coupling)
    total_distance = torch.stack(distances).clamp(min=minimum).sum(dim=0)
    _close(staged(model, plan), gradient_of(model, last, 1 / total_distance))


def test_the_adjoint_of_the_base_model_is_the_recursion_of_its_vector_jacobian_products() -> None:
    """λ_k = λ_{k+1} + Δ_k J_kᵀ λ_{k+1} with the Jacobian of the base model, for a flow and Euler's method."""
    model = plain_model("transformer", "flow")
    plan, chain = plan_of(model, "ode_adjoint", 0, truncation_depth=3), Chain(model)
    last = chain.samples[-1].clone().requires_grad_()
    (adjoint,) = torch.autograd.grad(-SCALE * score(decoded(last)).sum(), last)
    expected = torch.zeros(())
    for step in (5, 4, 3):
        delta = float(model.pipe.scheduler.sigmas[step + 1] - model.pipe.scheduler.sigmas[step])
        predicted = chain.predict(step, chain.samples[step])
        expected = expected + gradient_of_loss(model, (predicted * delta * adjoint).sum())
        sample = chain.samples[step].clone().requires_grad_()
        (product,) = torch.autograd.grad((chain.base(step, sample) * adjoint).sum(), sample)
        adjoint = adjoint + delta * product
    _close(staged(model, plan), expected)


RULES = (GradStep(1.0, 1.5), GradStep(0.4, -2.0), GradStep(0.0, 1.0), GradStep(1.0, 0.7))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_any_couplings_and_gains_are_those_of_one_graph(network: str, scheduler: str) -> None:
    model = plain_model(network, scheduler)
    plan, chain = TruncationPlan(6, (0, 2, 3, 5), RULES), Chain(model)

    def predict(step: int, sample: Tensor) -> Tensor:
        if step not in plan.grad_steps:
            return chain.predictions[step]
        rule = plan.rule(step)
        return straight(chain.predict(step, mixed(sample, rule.coupling)), rule.gain)

    _close(staged(model, plan), gradient_of(model, chain.run(predict)[0][-1]))


def test_the_size_of_batches_changes_nothing() -> None:
    model = plain_model("transformer", "flow")
    plan = plan_of(model, "lagrange", 2)
    _close(staged(model, plan, micro=2), staged(model, plan, micro=1))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_couplings_and_gains_of_1_change_no_bit(scheduler: str) -> None:
    model = plain_model("transformer", scheduler)
    gradients = [
        staged(model, TruncationPlan(6, (1, 4, 5), rules)) for rules in ((), (GradStep(1.0, 1.0, 1.0),) * 3)
    ]
    assert torch.equal(*gradients)


def test_the_prior_of_a_step_scales_its_reference_penalty() -> None:
    """Penalties are a sum over steps, so half of each step's penalty is half of all."""
    model = plain_model("transformer", "ddim")
    steps = (3, 5)
    without = staged(model, TruncationPlan(6, steps))
    whole = staged(model, TruncationPlan(6, steps), 4.0)
    half = staged(model, TruncationPlan(6, steps, (GradStep(prior=0.5),) * 2), 4.0)
    _close(half - without, (whole - without) / 2)


def test_a_gain_of_0_leaves_the_reference_penalty() -> None:
    """Velocity matching has this gain at the first step of a flow, whose noise level is 1."""
    model = plain_model("transformer", "flow")
    without, whole = (staged(model, TruncationPlan(6, (0,)), penalty) for penalty in (0.0, 4.0))
    _close(staged(model, TruncationPlan(6, (0,), (GradStep(gain=0.0),)), 4.0), whole - without)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_coefficients_are_those_of_autograd_and_call_no_denoiser(scheduler: str) -> None:
    model = plain_model("transformer", scheduler, num_steps=7)
    schedule = model.sampling_schedule(conditioning(1))
    assert model.denoiser_calls == 0
    chain = Chain(model)
    torch.testing.assert_close(list(schedule.coefficients), chain.coefficients(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(list(schedule.noise_levels), chain.noise_levels(), rtol=1e-10, atol=1e-12)


def test_a_scheduler_that_clips_is_refused_where_its_coefficients_are_needed() -> None:
    model = plain_model("transformer", "ddim")
    model.pipe.scheduler.register_to_config(clip_sample=True)
    with pytest.raises(UserError, match=r"sampling\.truncation: .* linear in the denoiser's predictions"):
        plan_of(model, "sparse", 0)


@pytest.mark.parametrize("name", PATHS)
def test_each_video_is_decoded_and_scored_once(name: str) -> None:
    model = plain_model("transformer", "flow")
    settings = {key: value for key, value in PATHS[name].items() if key != "guidance_scale"}
    plan, reward = plan_of(model, name, 11, **settings), ClipScore()
    rollout = Rollout(["a", "b"], conditioning(2), SEEDS, [[range(2)] * 2])
    accumulate_gradient(model, [RewardTerm("score", reward)], rollout, plan, Batching(2, 1, 2), scale=SCALE)
    assert (model.decoder.num_calls, reward.num_videos) == (2, 2)


@pytest.mark.parametrize("name", ["drtune", "refl"])
def test_steps_after_the_rewarded_one_call_no_denoiser(name: str) -> None:
    model = plain_model("transformer", "flow", num_steps=12)
    plan = plan_of(model, name, 3, truncation_options={})
    assert plan.reward_step is not None
    assert plan.reward_step < 11
    before = model.denoiser_calls
    staged(model, plan)
    assert model.denoiser_calls - before == 2 * 2 * (plan.reward_step + 1)  # videos · branches · steps


def own_path(context: PathContext, *, gain: float = 2.0, step: int = 1) -> BackwardPath:
    """A user's function, found by its dotted name."""
    return BackwardPath({step: GradStep(gain=gain), 5: GradStep(0.3)})


def backwards(context: PathContext) -> BackwardPath:
    return BackwardPath({5: GradStep(), 1: GradStep()})


def no_path(_: PathContext) -> int:
    return 3


def test_a_function_of_the_user_and_a_list_are_the_same_path() -> None:
    model = plain_model("transformer", "flow")
    options = {"truncation_options": {"gain": 3.0, "step": 2.0}}
    by_function = plan_of(model, f"{__name__}.own_path", 0, **options)
    listed = [{"step": 2, "gain": 3.0}, {"step": 5, "coupling": 0.3}]
    sampling = SamplingConfig(num_frames=1, height=8, width=8, num_inference_steps=6, truncation=listed)
    by_list = draw_plan(sampling, torch.Generator())
    assert by_function == by_list
    assert (by_list.grad_steps, sampling.max_grad_steps()) == ((2, 5), 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"truncation": f"{__name__}.backwards"}, r"chose the gradient steps \[5, 1\]"),
        ({"truncation": f"{__name__}.nothing"}, "defines no 'nothing'"),
        ({"truncation": f"{__name__}.no_path"}, "returned a int; return a BackwardPath"),
        ({"truncation": "sparse", "truncation_options": {"bias": 1}}, "has no option bias; it has late_bias"),
        ({"truncation": "window", "truncation_options": {"start": 1.5}}, "start=1.5: give an integer"),
        ({"truncation": "window", "truncation_options": {"start": 6}}, "choose start from 0 to 5"),
        ({"truncation": "last", "truncation_options": {"coupling": 2}}, "give a number from 0 to 1"),
        ({"truncation": "bridge"}, "sampling.truncation_depth=1: bridge needs 2 or more"),
    ],
)
def test_a_choice_that_does_not_fit_is_refused_at_load(settings: dict[str, Any], message: str) -> None:
    sampling = SamplingConfig(num_frames=1, height=8, width=8, num_inference_steps=6, **settings)
    with pytest.raises((UserError, RunFailed), match=message):
        check_plan(sampling)


@pytest.mark.parametrize(
    "settings",
    [
        {"truncation": "velocity_matching"},
        {"truncation": "ode_adjoint"},
        {"truncation": "ode_adjoint", "penalty": 1.0, "checkpointing": "block"},
    ],
)
def test_a_path_with_a_prior_needs_its_weight_and_whole_blocks(settings: dict[str, Any]) -> None:
    changes = [f"sampling.truncation={settings['truncation']}"]
    changes += [f"algorithm.reference_penalty={settings.get('penalty', 0.0)}"]
    changes += [f"runtime.activation_checkpointing={settings.get('checkpointing', 'none')}"]
    field = "activation_checkpointing=block" if "checkpointing" in settings else "reference_penalty=0"
    with pytest.raises(UserError, match=field):
        algorithms.check(load("shapes_hps", changes))


def test_draws_are_functions_of_the_generator_and_reach_every_step() -> None:
    model = plain_model("transformer", "flow")
    for name, settings in PATHS.items():
        depth = settings.get("truncation_depth", 1)
        plans = [plan_of(model, name, seed, truncation_depth=depth) for seed in range(40)]
        assert plans[7] == plan_of(model, name, 7, truncation_depth=depth)
        reached = {step for plan in plans for step in plan.grad_steps}
        everywhere = name in ("drtune", "sparse", "bridge", "leap", "lagrange", "velocity_matching")
        assert reached == set(range(6)) if everywhere else len(reached) in (3,), name
