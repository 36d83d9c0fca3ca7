"""Hooks that stop, skip and differentiate steps of a diffusers pipeline's own denoising loop.

Three facts make one implementation work for every pipeline (diffusers 0.42):
``inspect.unwrap(type(pipe).__call__)`` is the loop without its ``no_grad``; the loop calls ``scheduler.step``
once per denoising step; ``vae.decode`` receives the exact input of the decoder.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor, nn
from torch.utils._pytree import tree_map, tree_map_only
from torch.utils.checkpoint import checkpoint

from vader_ray.gradients import penalize_distance, scale_gradient
from vader_ray.models.adapters.lora import disabled
from vader_ray.models.core import transitions
from vader_ray.models.core.denoiser_calls import as_output, prediction, with_prediction
from vader_ray.models.core.memory_optimizations import recompute
from vader_ray.models.core.placement import frozen_dtype, reported_dtype
from vader_ray.models.core.video_workers import GuidanceBranches, VideoWorkers
from vader_ray.types import GradStep, TruncationPlan

OUTSIDE_STEPS = -2
"""Step number of the noise that a loop draws outside its denoising steps: image augmentation, noise for the
decoder. Not −1: `step_seed` of step −1 is the seed of the video itself, from which its initial noise is
drawn."""
SEED_STRIDE = 7919
"""Distance between the seeds of neighbouring denoising steps of a video: a prime that is large enough that
videos with nearby seeds do not share noise."""


def step_seed(seed: int, step: int) -> int:
    """Return the seed of one denoising step's noise, a function of the video's seed and the step alone."""
    return (seed + SEED_STRIDE * (step + 1)) % 2**63


@dataclass(frozen=True, slots=True)
class SamplingState:
    """Sampling that was stopped before the first gradient step; one entry per video, can be sliced."""

    noise: Tensor
    """Initial noise, ``batch channels frames height width``."""
    seeds: tuple[int, ...]
    outputs: tuple[Tensor, ...] | None
    """Last return value of ``scheduler.step``, the sample first; ``batch`` or ``batch·frames`` leads. None
    before step 0. Some schedulers (CogVideoX's DPM) return a second tensor, which the loop passes to their
    next step."""
    scheduler_state: dict[str, Any]
    """Attributes of the scheduler; empty before step 0."""

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, part: slice | list[int]) -> SamplingState:
        chosen = list(range(len(self)))[part] if isinstance(part, slice) else part
        seeds = tuple(self.seeds[video] for video in chosen)
        if self.outputs is None:
            return SamplingState(self.noise[chosen], seeds, None, {})
        shape = self.outputs[0].shape
        rows = rows_of(chosen, shape[0] // len(self))
        state = tree_map_only(
            Tensor, lambda tensor: tensor[rows] if tensor.shape == shape else tensor, self.scheduler_state
        )
        return SamplingState(self.noise[chosen], seeds, tuple(output[rows] for output in self.outputs), state)

    @staticmethod
    def join(parts: Sequence[SamplingState]) -> SamplingState:
        """Concatenate states that stopped before the same denoising step."""
        first = parts[0]
        if len(parts) == 1:
            return first
        noise = torch.cat([part.noise for part in parts])
        seeds = tuple(seed for part in parts for seed in part.seeds)
        if first.outputs is None:
            return SamplingState(noise, seeds, None, {})
        outputs = tuple(
            torch.cat(column) for column in zip(*(part.outputs or () for part in parts), strict=True)
        )
        state = _join_states([part.scheduler_state for part in parts], first.outputs[0].shape)
        return SamplingState(noise, seeds, outputs, state)


def rows_of(videos: Sequence[int], rows_per_video: int) -> list[int]:
    """Return the rows of some videos in a tensor with ``rows_per_video`` rows for each video."""
    return [video * rows_per_video + row for video in videos for row in range(rows_per_video)]


def _join_states(states: Sequence[dict[str, Any]], shape: torch.Size) -> dict[str, Any]:
    """Concatenate the tensors of the sample's shape; everything else is equal in all states."""

    def join(first: Any, *others: Any) -> Any:
        is_sample = isinstance(first, Tensor) and first.shape == shape
        return torch.cat([first, *others]) if is_sample else first

    joined: dict[str, Any] = tree_map(join, states[0], *states[1:])
    return joined


class DecoderReached(Exception):
    """Raised instead of decoding; carries the exact input of the decoder."""

    def __init__(self, latents: Tensor) -> None:
        self.latents = latents


class PrefixDone(Exception):
    """Raised after the last denoising step before the first gradient step."""


class LoopHook:
    """One pass through a pipeline's denoising loop.

    Args:
        seeds: one per video; the noise of every denoising step is a function of them.
        plan: which denoising steps carry gradient; None for none.
        stop_before: raise `PrefixDone` before this denoising step.
        resume: skip the denoising steps before the plan's first gradient step and continue from this state.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        *,
        plan: TruncationPlan | None,
        stop_before: int | None = None,
        resume: SamplingState | None = None,
    ):
        self._seeds = seeds
        self._plan = plan
        self._stop_before = stop_before
        self._resume = resume
        self._num_skipped = plan.grad_steps[0] if plan and resume else 0
        self._in_blocks = self._round_timesteps = False
        self._workers: VideoWorkers | None = None
        self._branches: GuidanceBranches | None = None
        self._differences: list[Tensor] = []
        self.index = 0
        """Current denoising step; 0 is the noisiest."""
        self.denoiser_calls = 0
        """Forward passes of the denoiser, per video and guidance branch."""
        self.outputs: tuple[Tensor, ...] | None = None
        """Last return value of ``scheduler.step``, set when the loop stops before `stop_before`."""
        self.scheduler_state: dict[str, Any] = {}
        """Attributes of the scheduler at the same moment."""

    @contextmanager
    def install(
        self,
        denoisers: Sequence[nn.Module],
        scheduler: Any,
        vae: Any,
        workers: VideoWorkers | None = None,
        *,
        in_blocks: bool,
        round_timesteps: bool = False,
    ) -> Iterator[None]:
        """Route the pipeline's calls of denoisers, scheduler and autoencoder through this hook.

        With several workers of a video, each computes its part of every call of a denoiser. ``in_blocks`` is
        whether the denoisers recompute each of their blocks in the backward pass, ``round_timesteps`` whether
        timesteps are converted to the denoisers' dtype.

        The scheduler's class is replaced by a subclass and not its ``step`` by an attribute: schedulers call
        their own methods through ``self``, pipelines inspect the signature of ``type(scheduler).step``, and
        `SamplingState` copies the scheduler's attributes, among which a hook must not be.
        """
        self._in_blocks, self._round_timesteps = in_blocks, round_timesteps
        self._workers = workers
        if workers is not None and workers.num_branches > 1:
            self._branches = GuidanceBranches(workers, len(self._seeds))
        with ExitStack() as undo:
            for denoiser in denoisers:
                replace_attribute(undo, denoiser, "forward", self._hooked_forward(denoiser))
            replace_attribute(undo, vae, "decode", self._decode)
            if hasattr(vae, "encode"):
                replace_attribute(undo, vae, "encode", functools.partial(_encode, vae, vae.encode))
            kind = type(scheduler)
            scheduler.__class__ = self._hooked_scheduler(kind)
            undo.callback(setattr, scheduler, "__class__", kind)
            yield

    def _hooked_forward(self, denoiser: nn.Module) -> Callable[..., Any]:
        forward, names = denoiser.forward, tuple(inspect.signature(denoiser.forward).parameters)
        dtype, reported = frozen_dtype(denoiser), getattr(denoiser, "dtype", None)

        @functools.wraps(forward)
        def denoise(*args: Any, **kwargs: Any) -> Any:
            inputs = dict(zip(names, args, strict=False)) | kwargs
            with nullcontext() if reported is None else reported_dtype(denoiser, reported):
                return self._denoise(denoiser, forward, dtype, inputs)

        return denoise

    def _denoise(
        self, denoiser: nn.Module, forward: Callable[..., Any], dtype: torch.dtype, inputs: dict[str, Any]
    ) -> Any:
        """Call the denoiser in its own dtype; its output is float32 at least, the dtype of sampling."""
        name, latents = next(iter(inputs.items()))
        if self._is_skipped():
            unused = torch.empty_like(latents)  # `_skip_step` does not read the prediction
            return as_output(unused, inputs)
        plan = self._plan if torch.is_grad_enabled() else None
        needs_grad = plan is not None and self.index in plan.grad_steps
        rule = plan.rule(self.index) if plan is not None and needs_grad else GradStep()
        self.denoiser_calls += len(latents) * (2 if needs_grad and self._needs_base() else 1)
        latents = scale_gradient(latents, rule.coupling) if rule.coupling else latents.detach()
        inputs = {
            key: cast(value, dtype) if key != "timestep" or self._round_timesteps else value
            for key, value in (inputs | {name: latents}).items()
        }
        with torch.set_grad_enabled(needs_grad):
            inputs[name] = inputs[name].clone()  # some pipelines update the latents in place
            if self._workers is not None:
                inputs[name] = self._workers.sum_gradient(inputs[name])
            predict = functools.partial(self._predict, denoiser, forward, dtype)
            output = (
                predict(inputs)
                if self._branches is None
                else self._branches.call(denoiser, predict, name, inputs)
            )
            return with_prediction(output, scale_gradient(prediction(output), rule.gain))

    def _predict(
        self, denoiser: nn.Module, forward: Callable[..., Any], dtype: torch.dtype, inputs: dict[str, Any]
    ) -> Any:
        """Call the denoiser, with gradient if it is enabled."""
        plan, wide = self._plan, torch.promote_types(dtype, torch.float32)
        if plan is None or not torch.is_grad_enabled():
            return _cast_output(forward(**inputs), wide)
        call = forward
        if plan.recomputes(self.index, in_blocks=self._in_blocks):
            call = functools.partial(_recomputed, forward)
        if not self._needs_base():
            return _cast_output(call(**inputs), wide)
        name = next(iter(inputs))
        trained = inputs | {name: inputs[name].detach()} if plan.base_adjoint else inputs
        result = _cast_output(call(**trained), wide)
        with torch.set_grad_enabled(plan.base_adjoint):
            base = prediction(_cast_output(_recomputed(_without_adapter(denoiser, forward), **inputs), wide))
        predicted = prediction(result)
        if weight := self._penalty_weight():
            predicted = penalize_distance(predicted, base.detach(), weight)
        if plan.base_adjoint:
            predicted = predicted + (base - base.detach())
        return with_prediction(result, predicted)

    def _penalty_weight(self) -> float:
        """Return the weight of the reference penalty of the current gradient step."""
        assert self._plan is not None
        return self._plan.reference_weight * self._plan.rule(self.index).prior

    def _needs_base(self) -> bool:
        """Whether the current gradient step calls the denoiser without its adapter, too."""
        assert self._plan is not None
        has_earlier = self.index != self._plan.grad_steps[0]
        return self._penalty_weight() > 0 or (self._plan.base_adjoint and has_earlier)

    def _decode(self, latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        raise DecoderReached(latents)

    def _hooked_scheduler(self, base: Any) -> type:
        """Return a subclass of a scheduler's class whose ``step`` calls this hook.

        The signature of ``step`` is unchanged.
        """
        signature = inspect.signature(base.step)
        takes_generator = "generator" in signature.parameters

        @functools.wraps(base.step)
        def step(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
            given = signature.bind(scheduler, *args, **kwargs)
            given.apply_defaults()
            if self._is_skipped():
                return self._skip_step(scheduler, given.arguments)
            if self._plan is not None and torch.is_grad_enabled():
                self._add_to_distances(self._plan, given.arguments["model_output"])
                if self.index == self._plan.reward_step:
                    return self._end_at_prediction(scheduler, given.arguments)
            if takes_generator:
                kwargs["generator"] = self.generators(self.index, len(given.arguments["sample"]))
            result = self.advance(functools.partial(base.step, scheduler), args, kwargs)
            self.index += 1
            if self.index == self._stop_before:
                self.outputs = result if isinstance(result, tuple) else (result.prev_sample,)
                self.scheduler_state = _copy_state(scheduler)
                raise PrefixDone
            return result

        return type(base.__name__, (base,), {"step": step})

    def advance(self, step: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Take the scheduler's step. Subclasses record the step or end the loop here."""
        return step(*args, **kwargs)

    def _skip_step(self, scheduler: Any, given: dict[str, Any]) -> Any:
        """Return the sample unchanged; before the first gradient step, restore the state to resume from."""
        self.index += 1
        outputs: tuple[Tensor | None, ...] = (given["sample"], None)
        if self.index == self._num_skipped:
            assert self._resume is not None
            assert self._resume.outputs is not None
            outputs = self._resume.outputs
            vars(scheduler).update(_copy_containers(self._resume.scheduler_state))
        return as_step_output(outputs, given)

    def _is_skipped(self) -> bool:
        """Whether the current denoising step is before the gradient steps or after the one with the
        reward."""
        last = None if self._plan is None else self._plan.reward_step
        return self.index < self._num_skipped or (last is not None and self.index > last)

    def _end_at_prediction(self, scheduler: Any, given: dict[str, Any]) -> Any:
        """Return the clean video that the current denoising step predicts; the later ones are skipped."""
        predicted = transitions.clean_prediction(
            scheduler, given["model_output"], given["sample"], self.index
        )
        self.index += 1
        return as_step_output((predicted, None), given)

    def _add_to_distances(self, plan: TruncationPlan, output: Tensor) -> None:
        """Add a denoising step's prediction to the differences of `TruncationPlan.distances`."""
        terms = [row[self.index] * output.detach() for row in plan.distances]
        totals = self._differences or [torch.zeros_like(term) for term in terms]
        self._differences = [total.add_(term) for total, term in zip(totals, terms, strict=True)]

    def weighted(self, latents: Tensor) -> Tensor:
        """Return latents whose gradient is divided by each video's distances."""
        if self._plan is None or not self._plan.distances:
            return latents
        rows = [each.reshape(len(latents), -1).abs().mean(dim=1) for each in self._differences]
        total = torch.stack(rows).clamp(min=self._plan.min_distance).sum(dim=0)
        return scale_gradient(latents, (1 / total).reshape(-1, *[1] * (latents.ndim - 1)))

    def generators(self, step: int, num_rows: int) -> list[torch.Generator]:
        """Return the generators of one denoising step, or of `OUTSIDE_STEPS`, one per row of the sample."""
        per_video = [torch.Generator().manual_seed(step_seed(seed, step)) for seed in self._seeds]
        return [generator for generator in per_video for _ in range(num_rows // len(self._seeds))]


def _recomputed(forward: Callable[..., Any], **inputs: Any) -> Any:
    """Call a denoiser and recompute the call in the backward pass, if there is one."""
    return checkpoint(forward, **inputs, use_reentrant=False, preserve_rng_state=False)


def _without_adapter(denoiser: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return the denoiser's forward pass without the adapter, also where it is recomputed."""

    def call(**inputs: Any) -> Any:
        with disabled([denoiser]):
            return forward(**inputs)

    return call


def replace_attribute(undo: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Set an instance attribute until the stack unwinds, then restore the earlier one.

    accelerate, for example, sets ``forward`` on instances.
    """
    if name in vars(owner):
        undo.callback(setattr, owner, name, vars(owner)[name])
    else:
        undo.callback(delattr, owner, name)
    setattr(owner, name, value)


def _encode(vae: nn.Module, encode: Callable[..., Any], image: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Encode an image in the autoencoder's dtype; loops pass images in the dtype of the prompt embeddings.

    For the gradient of an image that has one it is encoded again in the backward pass.
    """
    return recompute(encode, image.to(frozen_dtype(vae)), *args, **kwargs)


def _copy_state(scheduler: Any) -> dict[str, Any]:
    return _copy_containers({k: v for k, v in vars(scheduler).items() if k != "_internal_dict"})


def _copy_containers(state: dict[str, Any]) -> dict[str, Any]:
    """Copy nested dicts and lists, which schedulers change in place; tensors are shared."""
    copied: dict[str, Any] = tree_map(lambda leaf: leaf, state)
    return copied


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Convert a floating-point tensor to a dtype; return anything else unchanged."""
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def as_step_output(outputs: tuple[Tensor | None, ...], given: dict[str, Any]) -> Any:
    """Return samples as ``scheduler.step`` with these arguments would."""
    return outputs if given["return_dict"] is False else SchedulerOutput(prev_sample=outputs[0])


def _cast_output(output: Any, dtype: torch.dtype) -> Any:
    if isinstance(output, tuple):
        return tuple(cast(item, dtype) for item in output)
    output.sample = cast(output.sample, dtype)
    return output
