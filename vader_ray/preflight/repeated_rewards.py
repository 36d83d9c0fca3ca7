"""Compute equal calls of a frame reward on the meta device twice, and count the others as the second one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode_stack

from vader_ray.alignment.reward_gradient import RewardTerm
from vader_ray.preflight.meta_device import META
from vader_ray.preflight.trackers import OpCounter, OpRecord, PeakMemoryTracker
from vader_ray.training.experiment import Experiment
from vader_ray.types import Frames, Scores

_NUM_COMPUTED = 2
"""Calls of each kind that are computed: the first may also encode the prompt."""


def with_repeated_rewards(experiment: Experiment) -> Experiment:
    """Return the experiment with each frame reward in this process as a `RepeatedReward`."""
    return replace(
        experiment,
        terms=[_repeated(term) for term in experiment.terms],
        eval_terms=[_repeated(term) for term in experiment.eval_terms],
    )


def _repeated(term: RewardTerm) -> RewardTerm:
    if isinstance(term.reward, nn.Module) and term.reward.granularity == "frame":
        return replace(term, reward=RepeatedReward(term.reward))
    return term


@dataclass
class _Pass:
    """Counts of a forward or a backward pass."""

    peak: int = 0
    """Peak of memory, from before the forward pass on."""
    operations: Counter[OpRecord] = field(default_factory=Counter[OpRecord])


@dataclass
class _Call:
    """Counts of the last computed call of a kind."""

    times: int = 0
    """Number of calls, repeated ones included."""
    forward: _Pass = field(default_factory=_Pass)
    backward: _Pass = field(default_factory=_Pass)
    graph_bytes: int = 0
    """Bytes that are kept between the passes, without the scores."""

    @property
    def is_known(self) -> bool:
        """Whether this call is counted without being computed."""
        return self.times > _NUM_COMPUTED


class RepeatedReward(nn.Module):
    """A frame reward that is computed twice for each layout of frames and each list of prompts.

    Further calls return tensors without values, and every active `PeakMemoryTracker` and `OpCounter` counts
    them as the second one. Left out are bytes that a reward copies from host memory: constants and tokens.

    Args:
        reward: on the meta device.
    """

    def __init__(self, reward: Any) -> None:
        super().__init__()
        self.reward, self.granularity, self.unit = reward, reward.granularity, reward.unit
        self._calls: dict[Hashable, _Call] = {}

    def forward(self, frames: Frames, prompts: Sequence[str], /) -> Scores:
        """Return one score per video."""
        has_gradient = torch.is_grad_enabled() and frames.requires_grad
        key = (frames.shape, frames.stride(), frames.dtype, has_gradient, tuple(prompts))
        call = self._calls.setdefault(key, _Call())
        call.times += 1
        if has_gradient:
            scores: Scores = _WithGradient.apply(frames, self.reward, prompts, call)
            return scores
        if call.is_known:
            return _repeat(call.forward, _scores_of(frames))
        with _measured(call.forward, PeakMemoryTracker(META.type)):
            result: Scores = self.reward(frames, prompts)
        return result


class _WithGradient(torch.autograd.Function):
    """A reward whose gradient is computed, or counted, in the backward pass."""

    @staticmethod
    def forward(ctx: Any, frames: Frames, reward: Any, prompts: Sequence[str], call: _Call) -> Scores:
        ctx.call, ctx.frames, ctx.memory = (
            call,
            frames,
            None if call.is_known else PeakMemoryTracker(META.type),
        )
        if ctx.memory is None:
            return _repeat(call.forward, _scores_of(frames), kept=call.graph_bytes)
        ctx.leaf = frames.detach().requires_grad_()
        with torch.enable_grad(), _measured(call.forward, ctx.memory):
            ctx.scores = reward(ctx.leaf, prompts)
        call.graph_bytes = ctx.memory.now - ctx.scores.untyped_storage().nbytes()
        scores: Scores = ctx.scores.detach()
        return scores

    @staticmethod
    def backward(ctx: Any, d_scores: Tensor) -> tuple[Tensor | None, None, None, None]:  # type: ignore[override]
        call: _Call = ctx.call
        if ctx.memory is None:
            gradient = _empty(ctx.frames.shape, ctx.frames.dtype)
            return _repeat(call.backward, gradient, held=call.graph_bytes), None, None, None
        with _measured(call.backward, ctx.memory):
            (result,) = torch.autograd.grad(ctx.scores, ctx.leaf, d_scores)
        return result, None, None, None


@contextmanager
def _measured(counts: _Pass, memory: PeakMemoryTracker) -> Iterator[None]:
    memory.peak = memory.now
    with memory, OpCounter(META.type) as work:
        yield
    counts.peak, counts.operations = memory.peak, work.operations


def _repeat(counts: _Pass, result: Tensor, *, held: int = 0, kept: int = 0) -> Tensor:
    """Let every active tracker count a pass; return its result.

    Args:
        counts: of the pass.
        result: tensor that no tracker has seen.
        held: bytes that the pass before kept, and which this one frees.
        kept: bytes beside the result that this pass keeps.
    """
    for mode in _get_current_dispatch_mode_stack():
        if isinstance(mode, PeakMemoryTracker):
            mode.add_call(counts.peak, result, held=held, kept=kept)
        elif isinstance(mode, OpCounter):
            mode.operations.update(counts.operations)
    return result


def _scores_of(frames: Frames) -> Scores:
    return _empty(torch.Size((len(frames),)), torch.promote_types(frames.dtype, torch.float32))


def _empty(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    with _disable_current_modes():
        return torch.empty(shape, dtype=dtype, device=META)
