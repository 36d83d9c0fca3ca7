"""Single denoising steps of a pipeline's loop: what a chain went through, how probable a step was, what a step denoises."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from vader_ray.models.core.loop_hooks import LoopHook, rows_of
from vader_ray.types import Latents, Scores


@dataclass(frozen=True, slots=True)
class Trajectory:
    """Videos with every sample that their denoising went through; has one entry per video and can be sliced."""

    seeds: tuple[int, ...]
    latents: Latents | None
    """What the decoder takes; None for videos that were given, not made."""
    samples: tuple[Tensor, ...]
    """Before each denoising step and after the last, in the layout of ``scheduler.step`` (``batch`` or ``batch·frames``)."""
    log_probabilities: Tensor
    """Of each denoising step: ``batch steps``; empty where the scheduler has no known density."""
    stochastic: tuple[int, ...] = ()
    """Denoising steps that add noise."""

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, part: slice | list[int]) -> Trajectory:
        chosen = list(range(len(self)))[part] if isinstance(part, slice) else part
        rows = rows_of(chosen, len(self.samples[0]) // len(self))
        return Trajectory(
            seeds=tuple(self.seeds[video] for video in chosen),
            latents=None if self.latents is None else self.latents[chosen],
            samples=tuple(sample[rows] for sample in self.samples),
            log_probabilities=self.log_probabilities[chosen],
            stochastic=self.stochastic,
        )

    @staticmethod
    def join(parts: Sequence[Trajectory]) -> Trajectory:
        """The parts one after the other."""
        first = parts[0]
        return Trajectory(
            seeds=tuple(seed for part in parts for seed in part.seeds),
            latents=None
            if first.latents is None
            else torch.cat([part.latents for part in parts if part.latents is not None]),
            samples=tuple(
                torch.cat(column) for column in zip(*(part.samples for part in parts), strict=True)
            ),
            log_probabilities=torch.cat([part.log_probabilities for part in parts]),
            stochastic=first.stochastic,
        )


class TrajectoryRecorder(LoopHook):
    """Keeps every sample of the loop, and with ``densities`` how probable each denoising step was."""

    def __init__(self, seeds: Sequence[int], *, densities: bool) -> None:
        super().__init__(seeds, plan=None)
        self._num_videos, self._densities = len(seeds), densities
        self._samples, self._log_probabilities, self._stochastic = list[Tensor](), list[Tensor](), list[int]()

    def advance(self, step: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = inspect.signature(step).bind(*args, **kwargs).arguments
        result = step(*args, **kwargs)
        following = result[0] if isinstance(result, tuple) else result.prev_sample
        self._samples = self._samples or [given["sample"]]
        self._samples.append(following)
        if self._densities:
            mean, deviation = transition(step, given)
            if deviation > 0:
                self._stochastic.append(self.index)
            self._log_probabilities.append(log_density(following, mean, deviation, self._num_videos))
        return result

    def trajectory(self, seeds: Sequence[int], latents: Latents) -> Trajectory:
        """All that was recorded."""
        empty = latents.new_zeros(len(seeds), 0)
        densities = torch.stack(self._log_probabilities, dim=1) if self._densities else empty
        return Trajectory(tuple(seeds), latents, tuple(self._samples), densities, tuple(self._stochastic))


class StepReached(Exception):
    """Raised in place of the scheduler's arithmetic: its ``step`` and what it was given, by name."""

    def __init__(self, step: Callable[..., Any], given: dict[str, Any]) -> None:
        self.step, self.given = step, given


class PredictionProbe(LoopHook):
    """Ends the loop at the first denoising step that it does not skip, after the denoiser's call."""

    def advance(self, step: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        raise StepReached(step, dict(inspect.signature(step).bind(*args, **kwargs).arguments))


class LoopReady(Exception):
    """Raised in place of the first denoiser call: the loop has set up its scheduler."""


class StopBeforeDenoiser(LoopHook):
    """Ends the loop before its first denoiser call."""

    def _denoise(self, *args: Any, **kwargs: Any) -> Any:
        raise LoopReady


def has_density(scheduler: Any) -> bool:
    """Whether the scheduler's step is a Gaussian that is known."""
    return isinstance(scheduler, DDIMScheduler)


def check_density(scheduler: Any) -> None:
    """Raises ValueError unless the probability density of the scheduler's step is known."""
    if not has_density(scheduler):
        raise ValueError(
            f"algorithm.name=ddpo needs the probability of each denoising step, which {type(scheduler).__name__} does not "
            "give; set sampling.scheduler=DDIMScheduler where the family can use it (modelscope, animatediff), or choose "
            "algorithm.name=vader or dpo"
        )


def transition(step: Callable[..., Any], given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the next sample under a DDIM step (arXiv 2010.02502, formulas 12 and 16).

    Asked of the scheduler itself: its step without noise is the mean, its step from nothing with noise 1 the deviation.
    """
    zero = torch.zeros_like(given["sample"])
    plain = given | {"generator": None, "return_dict": False}
    mean = step(**plain | {"variance_noise": zero})[0]
    alone = step(**plain | {"model_output": zero, "sample": zero, "variance_noise": torch.ones_like(zero)})[0]
    return mean, alone.flatten()[0]


def log_density(value: Tensor, mean: Tensor, deviation: Tensor, num_videos: int) -> Scores:
    """log N(value; mean, deviation²) of each video, **per element of its latents**; 0 where the deviation is.

    The mean over the elements, as in the code of DDPO's authors: the size of a video does not change the scale of ratios.
    """
    if not deviation > 0:
        return mean.new_zeros(num_videos)
    squares = ((value - mean) / deviation).square().reshape(num_videos, -1).mean(dim=1)
    return -squares / 2 - deviation.log() - math.log(2 * math.pi) / 2


def noised(scheduler: Any, clean: Tensor, noise: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """A sample as the loop has it before a denoising step, from clean latents and noise, and what the denoiser shall predict.

    Raises:
        ValueError: it is not known what the denoiser predicts under this scheduler.
    """
    signal, level = _levels(scheduler, step)
    kind = scheduler.config.get("prediction_type", "flow_prediction" if _is_flow(scheduler) else None)
    size = math.hypot(signal, level)  # some schedulers' samples are not scaled to variance 1
    targets = {
        "epsilon": lambda: noise,
        "sample": lambda: clean,
        "v_prediction": lambda: (signal * noise - level * clean) / size,
        "flow_prediction": lambda: noise - clean,
    }
    if kind not in targets or scheduler.config.get("invert_sigmas"):
        raise ValueError(
            f"algorithm.name=dpo: what the denoiser predicts under {type(scheduler).__name__} (prediction_type {kind!r}, "
            "inverted sigmas or unknown) has no denoising error here; choose algorithm.name=vader"
        )
    shrunk = _shrinkage(scheduler, step)
    return signal * shrunk * clean + level * noise, targets[kind]()


def _is_flow(scheduler: Any) -> bool:
    return hasattr(scheduler, "scale_noise") or scheduler.config.get("use_flow_sigmas", False)


def _levels(scheduler: Any, step: int) -> tuple[float, float]:
    """How much signal and how much noise a sample holds before a denoising step."""
    if not hasattr(scheduler, "sigmas"):
        alpha = float(scheduler.alphas_cumprod[int(scheduler.timesteps[step])])
        return math.sqrt(alpha), math.sqrt(1 - alpha)
    sigma = float(scheduler.sigmas[step])
    if _is_flow(scheduler):
        return 1 - sigma, sigma
    if hasattr(scheduler, "is_scale_input_called"):
        return 1.0, sigma  # the scheduler scales the denoiser's input
    return 1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma)


def _shrinkage(scheduler: Any, step: int) -> float:
    """Factor of the clean latents at a denoising step: 1, except for VideoCrafter2's scheduler, which was trained with less."""
    scales = getattr(scheduler, "scales", None)
    return 1.0 if scales is None else float(scales[int(scheduler.timesteps[step])])
