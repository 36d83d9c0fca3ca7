"""Hooks that stop, skip and differentiate steps of a diffusers pipeline's own denoising loop.

Three facts make one implementation work for every pipeline (diffusers 0.42):
``inspect.unwrap(type(pipe).__call__)`` is the loop without its ``no_grad``; the loop calls ``scheduler.step``
once per denoising step; ``vae.decode`` receives the exact input of the decoder. A pipeline that makes sound,
too, calls the ``step`` of a copy of the scheduler after it, for the latents of the sound.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from vader_ray.errors import UserError
from vader_ray.gradients import penalize_distance, scale_gradient
from vader_ray.models.adapters.lora import disabled
from vader_ray.models.core import transitions
from vader_ray.models.core.denoiser_calls import (
    latents_of,
    predictions,
    unused_output,
    with_predictions,
)
from vader_ray.models.core.memory_optimizations import recompute
from vader_ray.models.core.placement import frozen_dtype, reported_dtype
from vader_ray.models.core.sampling_state import SamplingState, SchedulerState
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


class DecoderReached(Exception):
    """Raised instead of decoding; carries the exact input of the decoder."""

    def __init__(self, latents: Tensor) -> None:
        self.latents = latents


class PrefixDone(Exception):
    """Raised after the last denoising step before the first gradient step."""


class LoopHook:
    """One pass through a pipeline's denoising loop.

    Raises:
        UserError: the pipeline makes sound, too, and the subclass reads the samples of a video alone.

    Args:
        seeds: one per video; the noise of every denoising step is a function of them.
        plan: which denoising steps carry gradient; None for none.
        stop_before: raise `PrefixDone` before this denoising step.
        resume: skip the denoising steps before the plan's first gradient step and continue from this state.
    """

    knows_sound: ClassVar[bool] = True
    """Whether a loop may denoise a second sample beside the video."""

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
        self.schedulers: tuple[SchedulerState, ...] = ()
        """The loop's schedulers before the denoising step `stop_before`."""

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
            scheduler.__class__ = self._hooked_scheduler(kind, scheduler)
            undo.callback(setattr, scheduler, "__class__", kind)
            yield

    def _hooked_forward(self, denoiser: nn.Module) -> Callable[..., Any]:
        forward, names = denoiser.forward, tuple(inspect.signature(denoiser.forward).parameters)
        dtype, reported = frozen_dtype(denoiser), getattr(denoiser, "dtype", None)

        @functools.wraps(forward)
        def denoise(*args: Any, **kwargs: Any) -> Any:
            if self.index == self._stop_before:
                raise PrefixDone
            inputs = dict(zip(names, args, strict=False)) | kwargs
            with nullcontext() if reported is None else reported_dtype(denoiser, reported):
                return self._denoise(denoiser, forward, dtype, inputs)

        return denoise

    def _denoise(
        self, denoiser: nn.Module, forward: Callable[..., Any], dtype: torch.dtype, inputs: dict[str, Any]
    ) -> Any:
        """Call the denoiser in its own dtype; its output is float32 at least, the dtype of sampling."""
        if self._is_skipped(self.index):
            return unused_output(inputs)
        latents = latents_of(inputs)
        plan = self._plan if torch.is_grad_enabled() else None
        needs_grad = plan is not None and self.index in plan.grad_steps
        rule = plan.rule(self.index) if plan is not None and needs_grad else GradStep()
        name = next(iter(latents))
        self.denoiser_calls += len(latents[name]) * (2 if needs_grad and self._needs_base() else 1)
        for key, value in latents.items():
            inputs[key] = scale_gradient(value, rule.coupling) if rule.coupling else value.detach()
        inputs = {
            key: cast(value, dtype) if key != "timestep" or self._round_timesteps else value
            for key, value in inputs.items()
        }
        with torch.set_grad_enabled(needs_grad):
            for key in latents:
                inputs[key] = inputs[key].clone()  # some pipelines update the latents in place
                if self._workers is not None:
                    inputs[key] = self._workers.sum_gradient(inputs[key])
            predict = functools.partial(self._predict, denoiser, forward, dtype)
            output = (
                predict(inputs)
                if self._branches is None
                else self._branches.call(denoiser, predict, name, inputs)
            )
            gained = [scale_gradient(each, rule.gain) for each in predictions(output)]
            return with_predictions(output, gained)

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
        constant = {name: latents.detach() for name, latents in latents_of(inputs).items()}
        result = _cast_output(call(**inputs | constant if plan.base_adjoint else inputs), wide)
        with torch.set_grad_enabled(plan.base_adjoint):
            base = predictions(_cast_output(_recomputed(_without_adapter(denoiser, forward), **inputs), wide))
        predicted = list(predictions(result))
        if weight := self._penalty_weight():
            predicted[0] = penalize_distance(predicted[0], base[0].detach(), weight)
        if plan.base_adjoint:
            predicted = [own + (b - b.detach()) for own, b in zip(predicted, base, strict=True)]
        return with_predictions(result, predicted)

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

    def _hooked_scheduler(self, base: Any, own: Any) -> type:
        """Return a subclass of the class of a scheduler, ``own``, whose ``step`` calls this hook.

        The signature of ``step`` is unchanged. A copy that the loop makes of it has the class, too.
        """
        signature = inspect.signature(base.step)
        takes_generator = "generator" in signature.parameters

        @functools.wraps(base.step)
        def step(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
            given = signature.bind(scheduler, *args, **kwargs)
            given.apply_defaults()
            if scheduler is not own:
                if not self.knows_sound:
                    raise UserError(
                        "this model makes sound with its videos, for which algorithm.name=dpo and ddpo and "
                        "sampling.num_endings are not defined here; choose algorithm.name=vader and "
                        "sampling.num_endings=1"
                    )
                if takes_generator:
                    kwargs["generator"] = self._sound_generators(len(given.arguments["sample"]))
                return self._step_of_sound(base, scheduler, given.arguments, args, kwargs)
            if self._is_skipped(self.index):
                return self._skip_step(scheduler, given.arguments)
            if self._plan is not None and torch.is_grad_enabled():
                self._add_to_distances(self._plan, given.arguments["model_output"])
                if self.index == self._plan.reward_step:
                    return self._end_at_prediction(scheduler, given.arguments)
            if takes_generator:
                kwargs["generator"] = self.generators(self.index, len(given.arguments["sample"]))
            result = self.advance(functools.partial(base.step, scheduler), args, kwargs)
            self.index += 1
            self._record(scheduler, result)
            return result

        return type(base.__name__, (base,), {"step": step})

    def advance(self, step: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Take the scheduler's step. Subclasses record the step or end the loop here."""
        return step(*args, **kwargs)

    def _skip_step(self, scheduler: Any, given: dict[str, Any]) -> Any:
        """Return the sample unchanged; before the first gradient step, restore the state to resume from."""
        self.index += 1
        return self._resumed(0, scheduler, given)

    def _resumed(self, position: int, scheduler: Any, given: dict[str, Any]) -> Any:
        """Return what a skipped ``step`` returns; for the last one, the outputs of the state to resume from.

        Args:
            position: of the scheduler in `SamplingState.schedulers`.
            scheduler: gets the attributes of the state.
            given: arguments of ``step`` by name.
        """
        outputs: tuple[Tensor | None, ...] = (given["sample"], None)
        if self.index == self._num_skipped:
            assert self._resume is not None
            state = self._resume.schedulers[position]
            outputs = state.outputs
            vars(scheduler).update(_copy_containers(state.attributes))
        return as_step_output(outputs, given)

    def _step_of_sound(
        self, base: Any, scheduler: Any, given: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Take the step of the sound's scheduler, which follows that of the video's."""
        if self._is_skipped(self.index - 1):
            return self._resumed(1, scheduler, given)
        result = base.step(scheduler, *args, **kwargs)
        self._record(scheduler, result)
        return result

    def _record(self, scheduler: Any, result: Any) -> None:
        """Keep what a scheduler's step returned, if the loop stops before the next one."""
        if self.index == self._stop_before:
            outputs = result if isinstance(result, tuple) else (result.prev_sample,)
            unchanged = tuple(output.clone() for output in outputs)  # some pipelines change them in place
            self.schedulers += (SchedulerState(unchanged, _copy_state(scheduler)),)

    def _is_skipped(self, step: int) -> bool:
        """Whether a denoising step is before the gradient steps or after the one with the reward."""
        last = None if self._plan is None else self._plan.reward_step
        return step < self._num_skipped or (last is not None and step > last)

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

    def _sound_generators(self, num_rows: int) -> list[torch.Generator]:
        """Return generators of the sound in the denoising step before the current one, unlike the video's."""
        return self.generators(OUTSIDE_STEPS - self.index, num_rows)

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
