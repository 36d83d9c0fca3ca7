"""Hooks that make a diffusers pipeline's own denoising loop stop, fast-forward and carry gradient.

Three facts make one adapter serve every pipeline (diffusers 0.42): ``inspect.unwrap(type(pipe).__call__)`` is the loop
without its ``no_grad``; ``scheduler.step`` is called once per denoising step; ``vae.decode`` receives the decoder's exact
input.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vader_ray.models.adapters.lora import disabled
from vader_ray.types import TruncationPlan


@dataclass(frozen=True, slots=True)
class SamplingState:
    """Sampling stopped before the first graded denoising step; has one entry per video and can be sliced."""

    noise: Tensor
    seeds: tuple[int, ...]
    outputs: tuple[Tensor, ...] | None
    """What ``scheduler.step`` returned last, the sample first, in its own layout (``batch·frames`` or ``batch`` leads);
    None before step 0. Some schedulers (CogVideoX's DPM) return a second tensor that the loop hands back to them."""
    scheduler_state: dict[str, Any]

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, part: slice | list[int]) -> SamplingState:
        chosen = list(range(len(self)))[part] if isinstance(part, slice) else part
        seeds = tuple(self.seeds[video] for video in chosen)
        if self.outputs is None:
            return SamplingState(self.noise[chosen], seeds, None, {})
        shape = self.outputs[0].shape
        rows = rows_of(chosen, shape[0] // len(self))
        state = map_tensors(
            self.scheduler_state, lambda tensor: tensor[rows] if tensor.shape == shape else tensor
        )
        return SamplingState(self.noise[chosen], seeds, tuple(output[rows] for output in self.outputs), state)

    @staticmethod
    def join(parts: Sequence[SamplingState]) -> SamplingState:
        """The parts one after the other, all stopped before the same denoising step."""
        first = parts[0]
        if len(parts) == 1:
            return first
        noise, seeds = (
            torch.cat([part.noise for part in parts]),
            tuple(seed for part in parts for seed in part.seeds),
        )
        if first.outputs is None:
            return SamplingState(noise, seeds, None, {})
        outputs = tuple(
            torch.cat(column) for column in zip(*(part.outputs or () for part in parts), strict=True)
        )
        state = _join_states([part.scheduler_state for part in parts], first.outputs[0].shape)
        return SamplingState(noise, seeds, outputs, state)


def rows_of(videos: Sequence[int], rows_per_video: int) -> list[int]:
    """The rows of some videos where ``batch·frames`` leads."""
    return [video * rows_per_video + row for video in videos for row in range(rows_per_video)]


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same structure of dicts and lists, copied, with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: map_tensors(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [map_tensors(item, change) for item in value]
    return value


def _join_states(states: Sequence[Any], shape: torch.Size) -> Any:
    """One structure of equal ones: tensors of the sample's shape are concatenated, all else is the first's."""
    first = states[0]
    if isinstance(first, Tensor) and first.shape == shape:
        return torch.cat(list(states))
    if isinstance(first, dict):
        return {key: _join_states([state[key] for state in states], shape) for key in first}
    if isinstance(first, list):
        return [_join_states(items, shape) for items in zip(*states, strict=True)]
    return first


class DecoderReached(Exception):
    """Raised in place of decoding, with the decoder's exact input."""

    def __init__(self, latents: Tensor) -> None:
        self.latents = latents


class PrefixDone(Exception):
    """Raised when the last denoising step before the first graded one has been taken."""


class LoopHook:
    """One traversal of a pipeline's denoising loop."""

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
        self._skip = plan.grad_steps[0] if plan and resume else 0
        self.index = 0
        """The denoising step the loop is in."""
        self.denoiser_calls = 0
        self.outputs: tuple[Tensor, ...] | None = None
        self.scheduler_state: dict[str, Any] = {}

    @contextmanager
    def install(self, denoisers: Sequence[nn.Module], scheduler: Any, vae: Any) -> Iterator[None]:
        """Route the denoisers' forward, ``scheduler.step`` and ``vae.decode`` through this hook."""
        with ExitStack() as undo:
            for denoiser in denoisers:
                denoiser.forward = self._denoising(denoiser)  # type: ignore[method-assign]
                undo.callback(delattr, denoiser, "forward")
            vae.decode = self._decode
            undo.callback(delattr, vae, "decode")
            if hasattr(vae, "encode"):
                vae.encode = functools.partial(_encode, vae, vae.encode)
                undo.callback(delattr, vae, "encode")
            base = type(scheduler)
            scheduler.__class__ = self._stepping(base)
            undo.callback(setattr, scheduler, "__class__", base)
            yield

    def _denoising(self, denoiser: nn.Module) -> Callable[..., Any]:
        """The denoiser's forward, reporting to this hook."""
        forward, names = denoiser.forward, tuple(inspect.signature(denoiser.forward).parameters)
        dtype = frozen_dtype(denoiser)

        @functools.wraps(forward)
        def denoise(*args: Any, **kwargs: Any) -> Any:
            return self._denoise(denoiser, forward, dtype, dict(zip(names, args, strict=False)) | kwargs)

        return denoise

    def _denoise(
        self, denoiser: nn.Module, forward: Callable[..., Any], dtype: torch.dtype, inputs: dict[str, Any]
    ) -> Any:
        """One denoiser call: it computes in its own dtype, sampling goes on in float32 (float64 if the denoiser's is)."""
        name, latents = next(iter(inputs.items()))
        if self.index < self._skip:
            zeros = torch.zeros_like(latents)
            return (zeros,) if inputs.get("return_dict") is False else SimpleNamespace(sample=zeros)
        self.denoiser_calls += len(latents)
        plan = self._plan
        needs_grad = plan is not None and torch.is_grad_enabled() and self.index in plan.grad_steps
        latents = latents if plan is None or plan.backprop_through_input else latents.detach()
        inputs = {
            key: cast(value, dtype) if key != "timestep" else value
            for key, value in (inputs | {name: latents}).items()
        }
        with torch.set_grad_enabled(needs_grad):
            inputs[name] = inputs[name].clone()  # some pipelines update the latents in place
            if needs_grad and plan is not None and plan.recomputes(self.index):
                output = checkpoint(forward, **inputs, use_reentrant=False, preserve_rng_state=False)
            else:
                output = forward(**inputs)
        result = _map_output(output, torch.promote_types(dtype, torch.float32))
        if needs_grad and plan is not None and plan.reference_weight:
            with torch.no_grad(), disabled([denoiser]):
                base = _map_output(forward(**inputs), torch.promote_types(dtype, torch.float32))
            self.denoiser_calls += len(latents)
            result = _with_reference_penalty(result, base, plan.reference_weight / len(plan.grad_steps))
        return result

    def _decode(self, latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        raise DecoderReached(latents)

    def _stepping(self, base: Any) -> type:
        """A subclass of the scheduler whose step reports to this hook; its signature stays, pipelines inspect it."""
        signature = inspect.signature(base.step)
        takes_generator = "generator" in signature.parameters

        @functools.wraps(base.step)
        def step(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
            given = signature.bind(scheduler, *args, **kwargs)
            given.apply_defaults()
            if self.index < self._skip:
                return self._skip_step(scheduler, given.arguments)
            if takes_generator:
                kwargs["generator"] = self.generators(self.index, len(given.arguments["sample"]))
            result = self.advance(functools.partial(base.step, scheduler), args, kwargs)
            self.index += 1
            if self.index == self._stop_before:
                self.outputs = result if isinstance(result, tuple) else (result.prev_sample,)
                self.scheduler_state = _state(scheduler)
                raise PrefixDone
            return result

        return type(base.__name__, (base,), {"step": step})

    def advance(self, step: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the scheduler's step gives; other tapes look on, or stop here."""
        return step(*args, **kwargs)

    def _skip_step(self, scheduler: Any, given: dict[str, Any]) -> Any:
        """Leave the sample as it is, and on the last skipped step continue from where the prefix stopped."""
        assert self._resume is not None
        assert self._resume.outputs is not None
        self.index += 1
        outputs: tuple[Tensor | None, ...] = self._resume.outputs
        if self.index < self._skip:
            outputs = (given["sample"], *(None for _ in outputs[1:]))
        else:
            vars(scheduler).update(map_tensors(self._resume.scheduler_state, lambda tensor: tensor))
        return outputs if given["return_dict"] is False else SchedulerOutput(prev_sample=outputs[0])

    def generators(self, step: int, num_rows: int) -> list[torch.Generator]:
        """Generators of one denoising step: a function of the video's seed and the step alone. Step −2 is the loop's own."""
        per_video = [
            torch.Generator().manual_seed((seed + 7919 * (step + 1)) % 2**63) for seed in self._seeds
        ]
        return [generator for generator in per_video for _ in range(num_rows // len(self._seeds))]


def _encode(vae: nn.Module, encode: Callable[..., Any], image: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Loops hand over images in the dtype of the prompt embeddings, which is that of sampling."""
    return encode(image.to(frozen_dtype(vae)), *args, **kwargs)


def _state(scheduler: Any) -> dict[str, Any]:
    state: dict[str, Any] = map_tensors(
        {k: v for k, v in vars(scheduler).items() if k != "_internal_dict"}, lambda tensor: tensor
    )
    return state


def frozen_dtype(module: nn.Module) -> torch.dtype:
    """Dtype of the frozen weights: the smallest, as some layers of some denoisers stay in float32; so do adapters."""
    dtypes = {parameter.dtype for parameter in module.parameters() if not parameter.requires_grad}
    return min(
        (dtype for dtype in dtypes if dtype.is_floating_point), key=lambda dtype: torch.finfo(dtype).bits
    )


def cast(value: Any, dtype: torch.dtype) -> Any:
    """A floating-point tensor in a dtype; everything else as it is."""
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


class _ReferencePenalty(torch.autograd.Function):
    """The prediction itself, whose backward pass adds the gradient of weight · (mean squared distance to the base) per row."""

    @staticmethod
    def forward(ctx: Any, prediction: Tensor, base: Tensor, weight: float) -> Tensor:
        ctx.save_for_backward(prediction - base)
        ctx.weight = 2 * weight / prediction[0].numel()
        return prediction.view_as(prediction)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (distance,) = ctx.saved_tensors
        return gradient + ctx.weight * distance, None, None


def _with_reference_penalty(output: Any, base: Any, weight: float) -> Any:
    """A denoiser's output whose first tensor, the prediction, is pulled to that of another output."""
    if isinstance(output, tuple):
        return (_ReferencePenalty.apply(output[0], base[0], weight), *output[1:])
    output.sample = _ReferencePenalty.apply(output.sample, base.sample, weight)
    return output


def _map_output(output: Any, dtype: torch.dtype) -> Any:
    if isinstance(output, tuple):
        return tuple(cast(item, dtype) for item in output)
    output.sample = cast(output.sample, dtype)
    return output
