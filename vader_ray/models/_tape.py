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

from vader_ray.types import Plan


@dataclass(frozen=True, slots=True)
class Midway:
    """Sampling stopped before the first graded denoising step; has one entry per video and can be sliced."""

    noise: Tensor
    seeds: tuple[int, ...]
    sample: Tensor | None
    """What the scheduler returned last, in its own layout (``batch·frames`` or ``batch`` first); None before step 0."""
    scheduler_state: dict[str, Any]

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, part: slice | list[int]) -> Midway:
        chosen = list(range(len(self)))[part] if isinstance(part, slice) else part
        seeds = tuple(self.seeds[video] for video in chosen)
        if self.sample is None:
            return Midway(self.noise[chosen], seeds, None, {})
        shape = self.sample.shape
        rows = _rows(chosen, shape[0] // len(self))
        state = _map_tensors(self.scheduler_state, lambda tensor: tensor[rows] if tensor.shape == shape else tensor)
        return Midway(self.noise[chosen], seeds, self.sample[rows], state)


def _rows(videos: Sequence[int], rows_per_video: int) -> list[int]:
    return [video * rows_per_video + row for video in videos for row in range(rows_per_video)]


def _map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same structure of dicts and lists, copied, with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _map_tensors(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_map_tensors(item, change) for item in value]
    return value


class DecoderReached(Exception):
    """Raised in place of decoding, with the decoder's exact input."""

    def __init__(self, latents: Tensor) -> None:
        self.latents = latents


class PrefixDone(Exception):
    """Raised when the last denoising step before the first graded one has been taken."""


class Tape:
    """One traversal of a pipeline's denoising loop."""

    def __init__(self, seeds: Sequence[int], *, plan: Plan | None, stop_before: int | None = None, resume: Midway | None = None):
        self._seeds = seeds
        self._plan = plan
        self._stop_before = stop_before
        self._resume = resume
        self._skip = plan.graded[0] if plan and resume else 0
        self.index = 0
        """The denoising step the loop is in."""
        self.denoiser_calls = 0
        self.sample: Tensor | None = None
        self.scheduler_state: dict[str, Any] = {}

    @contextmanager
    def attached(self, denoiser: nn.Module, scheduler: Any, vae: nn.Module) -> Iterator[None]:
        """Route the denoiser's forward, ``scheduler.step`` and ``vae.decode`` through this tape."""
        with ExitStack() as undo:
            forward, names = denoiser.forward, tuple(inspect.signature(denoiser.forward).parameters)

            def denoise(*args: Any, **kwargs: Any) -> Any:
                return self._denoise(forward, denoiser, dict(zip(names, args, strict=False)) | kwargs)

            denoiser.forward = denoise  # type: ignore[method-assign]
            undo.callback(delattr, denoiser, "forward")
            vae.decode = self._decode  # type: ignore[assignment]
            undo.callback(delattr, vae, "decode")
            base = type(scheduler)
            scheduler.__class__ = self._stepping(base)
            undo.callback(setattr, scheduler, "__class__", base)
            yield

    def _denoise(self, forward: Callable[..., Any], denoiser: nn.Module, inputs: dict[str, Any]) -> Any:
        """One denoiser call: sampling stays in its own dtype, the denoiser computes in its own."""
        name, latents = next(iter(inputs.items()))
        if self.index < self._skip:
            zeros = torch.zeros_like(latents)
            return (zeros,) if inputs.get("return_dict") is False else SimpleNamespace(sample=zeros)
        self.denoiser_calls += len(latents)
        plan, dtype = self._plan, _dtype(denoiser)
        graded = plan is not None and torch.is_grad_enabled() and self.index in plan.graded
        latents = latents if plan is None or plan.chain else latents.detach()
        inputs = {key: _cast(value, dtype) if key != "timestep" else value for key, value in (inputs | {name: latents}).items()}
        with torch.set_grad_enabled(graded):
            inputs[name] = inputs[name].clone()  # some pipelines update the latents in place
            if graded and plan is not None and plan.replay:
                output = checkpoint(forward, **inputs, use_reentrant=False, preserve_rng_state=False)
            else:
                output = forward(**inputs)
        return _map_output(output, latents.dtype)

    def _decode(self, latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        raise DecoderReached(latents)

    def _stepping(self, base: type) -> type:
        """A subclass of the scheduler whose step reports to this tape; its signature stays, pipelines inspect it."""
        takes_generator = "generator" in inspect.signature(base.step).parameters  # type: ignore[attr-defined]

        @functools.wraps(base.step)  # type: ignore[attr-defined]
        def step(scheduler: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self.index < self._skip:
                previous = self._fast_forward(scheduler, sample)
                self.index += 1
                return (previous,) if kwargs.get("return_dict") is False else SchedulerOutput(prev_sample=previous)
            if takes_generator:
                kwargs["generator"] = self._generators(len(sample))
            result = base.step(scheduler, model_output, timestep, sample, *args, **kwargs)  # type: ignore[attr-defined]
            self.index += 1
            if self.index == self._stop_before:
                self.sample = result[0] if isinstance(result, tuple) else result.prev_sample
                self.scheduler_state = _state(scheduler)
                raise PrefixDone
            return result

        return type(base.__name__, (base,), {"step": step})

    def _fast_forward(self, scheduler: Any, sample: Tensor) -> Tensor:
        """Leave the sample as it is, and on the last skipped step continue from where the prefix stopped."""
        assert self._resume is not None
        assert self._resume.sample is not None
        if self.index < self._skip - 1:
            return sample
        vars(scheduler).update(_map_tensors(self._resume.scheduler_state, lambda tensor: tensor))
        return self._resume.sample

    def _generators(self, num_rows: int) -> list[torch.Generator]:
        """The noise of a stochastic scheduler is a function of the video's seed and the denoising step alone."""
        per_video = [torch.Generator().manual_seed((seed + 7919 * (self.index + 1)) % 2**63) for seed in self._seeds]
        return [generator for generator in per_video for _ in range(num_rows // len(self._seeds))]


def _state(scheduler: Any) -> dict[str, Any]:
    state: dict[str, Any] = _map_tensors(
        {k: v for k, v in vars(scheduler).items() if k != "_internal_dict"}, lambda tensor: tensor
    )
    return state


def _dtype(module: nn.Module) -> torch.dtype:
    """Dtype of the frozen weights; the adapter's are float32 whatever it is."""
    return next(parameter.dtype for parameter in module.parameters() if not parameter.requires_grad)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _map_output(output: Any, dtype: torch.dtype) -> Any:
    if isinstance(output, tuple):
        return tuple(_cast(item, dtype) for item in output)
    output.sample = _cast(output.sample, dtype)
    return output
