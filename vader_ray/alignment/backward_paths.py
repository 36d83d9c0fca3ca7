"""Backward paths: which denoising steps carry the reward gradient, and with which factors.

Every function of this module whose name is a value of ``sampling.truncation`` returns the path of one
training step. With the denoiser's prediction v_k(x_k) of step k, its Jacobian J_k, the coefficient c_k of
v_k in the last sample (`vader_ray.types.SamplingSchedule`; σ_{k+1} − σ_k for a flow and Euler's method) and
the reward's gradient g in the last sample, a path is the choice of the gradient steps S and of their
couplings α_k and gains ρ_k in

    λ_N = g,   λ_k = λ_{k+1} + α_k ρ_k c_k J_kᵀ λ_{k+1},   ∂R/∂θ = Σ_{k in S} (∂v_k/∂θ)ᵀ ρ_k c_k λ_{k+1},

written for Euler's method; for other schedulers, steps with memory included, the transposed scheduler stands
in for the products with c_k. A function of yours is used in the same way: it takes a `PathContext` and
keyword arguments, which are ``sampling.truncation_options``, and returns a `BackwardPath`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vader_ray.errors import UserError
from vader_ray.types import GradStep, SamplingSchedule


@dataclass(frozen=True, slots=True)
class PathContext:
    """Arguments of a path, the same on every worker."""

    num_steps: int
    """Number of denoising steps N."""
    depth: int
    """``sampling.truncation_depth`` K."""
    generator: torch.Generator
    """Source of random choices, a function of the run's seed and the training step."""
    read_schedule: Callable[[], SamplingSchedule] | None
    """Returns the scheduler's coefficients and noise levels."""

    def schedule(self) -> SamplingSchedule:
        """Return the scheduler's coefficients and noise levels."""
        assert self.read_schedule is not None, "this caller has paths without coefficients alone"
        return self.read_schedule()

    def randint(self, low: int, high: int) -> int:
        """Draw an integer from ``low`` to ``high``, both included."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def coefficients(self) -> tuple[float, ...]:
        """Return the coefficient c_k of each denoising step's prediction in the last sample."""
        return self.schedule().coefficients


@dataclass(frozen=True, slots=True)
class BackwardPath:
    """The gradient steps of one training step; see `vader_ray.types.TruncationPlan` for the fields."""

    steps: dict[int, GradStep]
    """Rule of each gradient step, by its index, ascending; the noisiest denoising step is 0."""
    base_adjoint: bool = False
    reward_step: int | None = None
    distances: tuple[tuple[float, ...], ...] = ()
    min_distance: float = 0.0


def last(context: PathContext, *, coupling: float = 1.0) -> BackwardPath:
    """Return the last K denoising steps: VADER (arXiv 2407.08737) and DRaFT-K (arXiv 2309.17400).

    With ``sampling.num_endings`` above 1 it is DRaFT-LV of the same paper.
    """
    return _equal_steps(range(context.num_steps - context.depth, context.num_steps), coupling)


def random(context: PathContext, *, coupling: float = 1.0) -> BackwardPath:
    """Return the last k denoising steps with k drawn from 1 to K: AlignProp (arXiv 2310.03739)."""
    drawn = context.randint(1, context.depth)
    return _equal_steps(range(context.num_steps - drawn, context.num_steps), coupling)


def uniform(context: PathContext, *, coupling: float = 1.0) -> BackwardPath:
    """Return K evenly spaced denoising steps that end with the last one.

    The gradient reaches early steps, which decide the motion, at the cost of few.
    """
    num_steps, depth = context.num_steps, context.depth
    return _equal_steps([(part + 1) * num_steps // depth - 1 for part in range(depth)], coupling)


def window(context: PathContext, *, start: int = 0, coupling: float = 1.0) -> BackwardPath:
    """Return K consecutive denoising steps from ``start`` on."""
    if not 0 <= start <= context.num_steps - context.depth:
        raise UserError(
            f"sampling.truncation_options.start={start} + truncation_depth={context.depth} runs past "
            f"num_inference_steps={context.num_steps}; choose start from 0 to "
            f"{context.num_steps - context.depth}"
        )
    return _equal_steps(range(start, start + context.depth), coupling)


def drtune(context: PathContext, *, early_stop: float = 0.4, coupling: float = 0.0) -> BackwardPath:
    """Return K equally spaced steps with a random start up to a random last one: DRTune, arXiv 2405.00760.

    The sampling ends at a denoising step drawn from the last ``early_stop`` · N, and the reward is that of
    its one-step prediction; ``early_stop=0`` takes the finished video. As in the code of FlowBP (arXiv
    2606.11075).
    """
    _check_share("early_stop", early_stop)
    num_stops, stop = round(context.num_steps * early_stop), None
    if num_stops:
        stop = context.num_steps - context.randint(1, num_stops)
    executed = context.num_steps if stop is None else stop + 1
    count = min(context.depth, executed)
    stride = executed // count
    start = context.randint(0, executed - 1 - (count - 1) * stride)
    steps = [start + part * stride for part in range(count)]
    return BackwardPath({step: GradStep(coupling) for step in steps}, reward_step=stop)


def refl(context: PathContext, *, last_share: float = 0.44) -> BackwardPath:
    """Return one step drawn from the last ``last_share`` · N, with the reward of its one-step prediction.

    ReFL (arXiv 2304.05977); 0.44 is 11 of 25 as in the code of FlowBP (arXiv 2606.11075).
    """
    _check_share("last_share", last_share)
    step = context.num_steps - context.randint(1, max(1, round(last_share * context.num_steps)))
    return BackwardPath({step: GradStep()}, reward_step=step)


def sparse(context: PathContext, *, late_bias: float = 2.0, rescale: float = 1.0) -> BackwardPath:
    """Return K uncoupled steps drawn with P(k) ∝ (k + 1)^late_bias: FlowBP-Sparse (arXiv 2606.11075).

    Their gain is 1 + rescale · (Σ|c| over all steps / Σ|c| over them − 1). The paper has K = 3.
    """
    steps = _draw(context, range(context.num_steps), context.depth, late_bias)
    gain = _rescaled(context.coefficients(), steps, rescale)
    return BackwardPath({step: GradStep(0.0, gain) for step in steps})


def bridge(
    context: PathContext, *, coupling: float = 0.1, late_bias: float = 2.0, rescale: float = 1.0
) -> BackwardPath:
    """Return K steps on both sides of a random step j, which couples them: FlowBP-Bridge (arXiv 2606.11075).

    The larger of two random steps is j, a gradient step itself; the others are drawn and scaled as those of
    `sparse`, on each side in proportion to its length. The paper has K = 5.
    """
    num_steps = context.num_steps
    if not 2 <= context.depth <= num_steps:
        raise UserError(f"sampling.truncation_depth={context.depth}: bridge needs 2 or more")
    middle = max(torch.randperm(num_steps, generator=context.generator)[:2].tolist())
    before = min(max(round(context.depth * middle / num_steps), 1), middle, context.depth - 1)
    before = max(before, context.depth - (num_steps - middle))
    early = _draw(context, range(middle), before, late_bias)
    late = _draw(context, range(middle + 1, num_steps), context.depth - before - 1, late_bias)
    steps = [*early, middle, *late]
    gain = _rescaled(context.coefficients(), steps, rescale)
    return BackwardPath({step: GradStep(coupling * (step == middle), gain) for step in steps})


def leap(context: PathContext, *, coupling: float = 0.3, min_distance: float = 0.1) -> BackwardPath:
    """Return two random steps k < j, each with the weight of the whole interval after it: LeapAlign.

    arXiv 2604.15311. The prediction of k is used up to j and that of j up to the end, so the gains are
    Σ_{k ≤ i < j} c_i / c_k and Σ_{i ≥ j} c_i / c_j. The gradient of a video is divided by the sum of two
    distances, each at least ``min_distance``: the mean absolute change of the last sample if the predictions
    after k, or after j, were replaced so.
    """
    if context.num_steps < 2:
        raise UserError("sampling.num_inference_steps: leap needs 2 or more")
    first, second = sorted(torch.randperm(context.num_steps, generator=context.generator)[:2].tolist())
    coefficients = context.coefficients()
    steps, rows = dict[int, GradStep](), []
    for start, end in ((first, second), (second, context.num_steps)):
        weight = math.fsum(coefficients[start:end])
        steps[start] = GradStep(coupling * (start == second), weight / coefficients[start])
        rows.append(_differences(coefficients, start, end, {start: weight}))
    return BackwardPath(steps, distances=tuple(rows), min_distance=min_distance)


def lagrange(
    context: PathContext,
    *,
    coupling: float = 0.1,
    rescale: float = 0.5,
    second_gain: float = 0.25,
    min_distance: float = 0.2,
) -> BackwardPath:
    """Return up to four steps that stand for two intervals by polynomials: FlowBP-Lagrange.

    arXiv 2606.11075. Steps k < j are drawn from a Dirichlet distribution. In [k, j) and in [j, N) the
    predictions are interpolated through up to three evenly spaced steps; the integrals of the Lagrange
    polynomials over the interval are their weights w_i. The first two of them are gradient steps, with gain
    f · w_i / c_i, f = 1 + rescale · (Σ|w| / Σ|w| over the gradient steps − 1); the second one's is
    multiplied by ``second_gain``. Only j is coupled. Distances are those of `leap`.
    """
    if context.num_steps < 3:
        raise UserError("sampling.num_inference_steps: lagrange needs 3 or more")
    first, second = _draw_interval(context)
    coefficients = context.coefficients()
    steps, rows = dict[int, GradStep](), []
    for start, end in ((first, second), (second, context.num_steps)):
        weights = _lagrange_weights(coefficients, start, end)
        active = list(weights)[:2]
        factor = 1 + rescale * (_absolute(weights.values()) / _absolute(weights[i] for i in active) - 1)
        for step in active:
            own = 1.0 if step == start else second_gain
            steps[step] = GradStep(
                coupling * (step == second), own * factor * weights[step] / coefficients[step]
            )
        rows.append(_differences(coefficients, start, end, weights))
    return BackwardPath(steps, distances=tuple(rows), min_distance=min_distance)


def velocity_matching(context: PathContext, *, strength: float = 1.0) -> BackwardPath:
    """Return K random uncoupled steps with weights 1 − σ_k: velocity matching with a saved reward gradient.

    RSM, arXiv 2604.17415: the prediction is drawn to that of the base model minus strength · (1 − σ_k) · g,
    with noise level σ_k. The gradient of the squared distance is the reference penalty's gradient plus that
    of uncoupled steps with gain strength · (1 − σ_k) / |c_k|; ``algorithm.reference_penalty`` is the weight
    of the squares.
    """
    schedule = context.schedule()
    steps = sorted(torch.randperm(context.num_steps, generator=context.generator)[: context.depth].tolist())
    return BackwardPath(
        {
            step: GradStep(
                0.0, strength * (1 - schedule.noise_levels[step]) / abs(schedule.coefficients[step])
            )
            for step in steps
        }
    )


def ode_adjoint(context: PathContext) -> BackwardPath:
    """Return the last K steps, with the adjoint of the base model between them: ODE-AM-K (arXiv 2605.06583).

    The gradient passes from a step to the earlier ones through the denoiser without its adapter; combine it
    with ``algorithm.reference_penalty``, the squared distance of adjoint matching (arXiv 2409.08861).
    """
    steps = range(context.num_steps - context.depth, context.num_steps)
    return BackwardPath({step: GradStep() for step in steps}, base_adjoint=True)


def _equal_steps(steps: Sequence[int], coupling: float) -> BackwardPath:
    _check_share("coupling", coupling)
    return BackwardPath({step: GradStep(coupling) for step in steps})


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UserError(f"sampling.truncation_options.{name}={value}: give a number from 0 to 1")


def _draw(context: PathContext, steps: Sequence[int], count: int, late_bias: float) -> list[int]:
    """Draw different steps, ascending; the chance of the i-th, from 1, is proportional to i^late_bias."""
    if not count:
        return []
    weights = (torch.arange(len(steps), dtype=torch.float64) + 1) ** late_bias
    drawn = torch.multinomial(weights, count, generator=context.generator)
    return sorted(steps[position] for position in drawn.tolist())


def _rescaled(coefficients: Sequence[float], steps: Sequence[int], rescale: float) -> float:
    """Return 1 + rescale · (Σ|c| / Σ|c| over some steps − 1)."""
    chosen = _absolute(coefficients[step] for step in steps)
    return 1 + rescale * (_absolute(coefficients) / chosen - 1)


def _absolute(values: Iterable[float]) -> float:
    return math.fsum(map(abs, values))


def _differences(
    coefficients: Sequence[float], start: int, end: int, weights: dict[int, float]
) -> tuple[float, ...]:
    """Return the coefficients of (approximation − sampled video) if some steps stand for an interval."""
    return tuple(
        weights.get(step, 0.0) - own if start <= step < end else 0.0 for step, own in enumerate(coefficients)
    )


def _draw_interval(context: PathContext) -> tuple[int, int]:
    """Draw k < j: the lengths of (j, N), [k, j) and [0, k] are Dirichlet(2.5, 6, 2), as FlowBP draws them."""
    seed = int(torch.randint(2**31, (), generator=context.generator))
    shares = np.random.default_rng(seed).dirichlet([2.5, 6.0, 2.0])
    lengths = np.round(shares * context.num_steps).astype(int)
    lengths[shares.argmax()] += context.num_steps - lengths.sum()
    lengths = lengths.clip(min=1)
    lengths[lengths.argmax()] += context.num_steps - lengths.sum()
    second = context.num_steps - int(lengths[0]) - 1
    return second - int(lengths[1]), second


def _lagrange_weights(coefficients: Sequence[float], start: int, end: int) -> dict[int, float]:
    """Return the integrals of the Lagrange polynomials through up to three steps of [start, end).

    The variable of the polynomials is the sum of the coefficients before a step: the noise level, for a flow
    and Euler's method.
    """
    positions = np.linspace(0, end - start - 1, min(3, end - start)).round().astype(int)
    points = (start + positions).tolist()
    levels = np.concatenate([[0.0], np.cumsum(coefficients)])
    weights = dict[int, float]()
    for point in points:
        others = [levels[other] for other in points if other != point]
        polynomial = np.poly1d(others, r=True) / math.prod(levels[point] - other for other in others)
        integral = polynomial.integ()
        weights[point] = float(integral(levels[end]) - integral(levels[start]))
    return weights
