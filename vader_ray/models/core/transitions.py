"""Arithmetic of single denoising steps: transition densities, and targets of the denoising error."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor

from vader_ray.errors import UserError
from vader_ray.types import Scores


def has_density(scheduler: Any) -> bool:
    """Return whether the scheduler's step is a Gaussian with known mean and deviation."""
    return isinstance(scheduler, DDIMScheduler)


def check_density(scheduler: Any) -> None:
    """Check that the probability density of the scheduler's step is known.

    Raises:
        UserError: it is not.
    """
    if not has_density(scheduler):
        raise UserError(
            "algorithm.name=ddpo needs the probability of each denoising step, which "
            f"{type(scheduler).__name__} does not give; set sampling.scheduler=DDIMScheduler where the "
            "family can use it (modelscope, animatediff), or choose algorithm.name=vader or dpo"
        )


def transition(step: Callable[..., Any], given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the next sample under a DDIM step.

    Formulas 12 and 16 of arXiv 2010.02502.

    The scheduler's step is linear in its noise, so the step without noise is the mean, and the step from
    zeros with noise 1 is the deviation. The scheduler itself computes both; its formulas are not repeated
    here.

    Args:
        step: the scheduler's ``step``.
        given: its arguments by name.
    """
    zero = torch.zeros_like(given["sample"])
    plain = given | {"generator": None, "return_dict": False}
    mean = step(**plain | {"variance_noise": zero})[0]
    noise_only = {"model_output": zero, "sample": zero, "variance_noise": torch.ones_like(zero)}
    return mean, step(**plain | noise_only)[0].flatten()[0]


def log_density(value: Tensor, mean: Tensor, deviation: Tensor, num_videos: int) -> Scores:
    """Return log N(value; mean, deviation²) of each video **per element of its latents**.

    0 where the deviation is 0.

    The mean over the elements, as in the code of DDPO's authors: the size of a video does not change the
    scale of ratios.
    """
    if not deviation > 0:
        return mean.new_zeros(num_videos)
    squares = ((value - mean) / deviation).square().reshape(num_videos, -1).mean(dim=1)
    return -squares / 2 - deviation.log() - math.log(2 * math.pi) / 2


def noised(scheduler: Any, clean: Tensor, noise: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Return the sample before a denoising step, and the denoiser's target for it.

    Args:
        scheduler: with its timesteps set.
        clean: latents without noise, in the layout of ``scheduler.step``.
        noise: of the same shape.
        step: denoising step; 0 is the noisiest.

    Raises:
        UserError: it is not known what the denoiser predicts under this scheduler.
    """
    signal, level = _signal_and_noise(scheduler, step)
    kind = _prediction_kind(scheduler, "algorithm.name=dpo", "algorithm.name=vader")
    size = math.hypot(signal, level)  # samples of some schedulers do not have variance 1
    target = {
        "epsilon": lambda: noise,
        "sample": lambda: clean,
        "v_prediction": lambda: (signal * noise - level * clean) / size,
        "flow_prediction": lambda: noise - clean,
    }[kind]()
    return signal * _clean_scale(scheduler, step) * clean + level * noise, target


def clean_prediction(scheduler: Any, predicted: Tensor, sample: Tensor, step: int) -> Tensor:
    """Return the clean latents that a denoising step's prediction stands for.

    Args:
        scheduler: with its timesteps set.
        predicted: the denoiser's prediction, after guidance.
        sample: before the denoising step.
        step: denoising step; 0 is the noisiest.

    Raises:
        UserError: it is not known what the denoiser predicts under this scheduler.
    """
    signal, level = _signal_and_noise(scheduler, step)
    kind = _prediction_kind(scheduler, "sampling.truncation: one-step prediction", "truncation=last")
    size = math.hypot(signal, level)
    return {
        "epsilon": lambda: (sample - level * predicted) / (signal * _clean_scale(scheduler, step)),
        "sample": lambda: predicted,
        "v_prediction": lambda: (signal * sample - level * size * predicted) / size**2,
        "flow_prediction": lambda: sample - level * predicted,
    }[kind]()


def noise_share(scheduler: Any, step: int) -> float:
    """Return the noise's share s / (a + s) of a sample before a denoising step, a · clean + s · noise."""
    signal, level = _signal_and_noise(scheduler, step)
    share = level / (signal + level)
    return 1 - share if scheduler.config.get("invert_sigmas") else share


def _prediction_kind(scheduler: Any, setting: str, remedy: str) -> str:
    """Return what the denoiser predicts under a scheduler: a name of diffusers' ``prediction_type``.

    Raises:
        UserError: it is not known; the message begins with the setting and ends with the remedy.
    """
    kind = scheduler.config.get("prediction_type", "flow_prediction" if _is_flow(scheduler) else None)
    known = ("epsilon", "sample", "v_prediction", "flow_prediction")
    if kind not in known or scheduler.config.get("invert_sigmas"):
        raise UserError(
            f"{setting}: what the denoiser predicts under {type(scheduler).__name__} (prediction_type "
            f"{kind!r}, inverted sigmas or unknown) is not known here; choose {remedy}"
        )
    return str(kind)


_WITHOUT_MEMORY = (
    DDIMScheduler,
    CogVideoXDDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
"""Schedulers whose step depends on nothing but the sample, the prediction and the step's index."""


_LEAST_NOISE = 1e-9
"""Smallest variance of added noise, as a share of that before the denoising step; below, it is rounding."""


def check_renoising(scheduler: Any) -> None:
    """Check that a finished video can be taken back to a denoising step by adding noise.

    Raises:
        UserError: the scheduler's steps depend on earlier ones, or its noise levels are unknown.
    """
    if not isinstance(scheduler, _WITHOUT_MEMORY) or scheduler.config.get("invert_sigmas"):
        known = ", ".join(kind.__name__ for kind in _WITHOUT_MEMORY)
        raise UserError(
            "sampling.num_endings adds noise to finished videos and repeats the last denoising steps, which "
            f"is not defined under {type(scheduler).__name__}: its steps depend on the steps before them, or "
            f"its noise levels are inverted or unknown; set sampling.scheduler to one of {known} if the "
            "family can use it, or sampling.num_endings=1"
        )


def renoised(scheduler: Any, final: Tensor, noise: Tensor, step: int) -> Tensor:
    """Return a sample before a denoising step for a finished video.

    With signal a and noise level s of the samples before the step, and a₀ and s₀ of the last sample, it is
    (a/a₀) · final + √(s² − (a·s₀/a₀)²) · noise, which has the step's noise level (DRaFT-LV, arXiv
    2309.17400, where a₀ = 1 and s₀ = 0).

    Args:
        scheduler: one that `check_renoising` accepts, with its timesteps set.
        final: the sample after the last denoising step.
        noise: of the same shape.
        step: denoising step; 0 is the noisiest.

    Raises:
        UserError: there is no noise to add.
    """
    signal, level = _signal_and_noise(scheduler, step)
    final_signal, final_level = _final_signal_and_noise(scheduler)
    ratio = signal * _clean_scale(scheduler, step) / final_signal
    added = level**2 - (ratio * final_level) ** 2
    if added < _LEAST_NOISE * level**2:
        raise UserError(
            f"sampling.num_endings: with this {type(scheduler).__name__}, a sample before the last "
            f"{len(scheduler.timesteps) - step} denoising steps has no more noise than a finished video, so "
            "all endings would be equal; raise sampling.truncation_depth, or set num_endings=1"
        )
    return ratio * final + math.sqrt(added) * noise


def _final_signal_and_noise(scheduler: Any) -> tuple[float, float]:
    """Return the coefficients of clean latents and noise in the sample after the last denoising step."""
    if hasattr(scheduler, "sigmas"):
        return _signal_and_noise(scheduler, len(scheduler.sigmas) - 1)
    alpha = float(scheduler.final_alpha_cumprod)
    return math.sqrt(alpha), math.sqrt(1 - alpha)


def _is_flow(scheduler: Any) -> bool:
    return hasattr(scheduler, "scale_noise") or scheduler.config.get("use_flow_sigmas", False)


def _signal_and_noise(scheduler: Any, step: int) -> tuple[float, float]:
    """Return the coefficients of clean latents and noise in a sample before a denoising step."""
    if not hasattr(scheduler, "sigmas"):
        alpha = float(scheduler.alphas_cumprod[int(scheduler.timesteps[step])])
        return math.sqrt(alpha), math.sqrt(1 - alpha)
    sigma = float(scheduler.sigmas[step])
    if _is_flow(scheduler):
        return 1 - sigma, sigma
    if hasattr(scheduler, "is_scale_input_called"):
        return 1.0, sigma  # the scheduler scales the denoiser's input
    return 1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma)


def _clean_scale(scheduler: Any, step: int) -> float:
    """Return the factor of the clean latents.

    It is 1, except for VideoCrafter2's scheduler, whose model was trained with less.
    """
    scales = getattr(scheduler, "scales", None)
    return 1.0 if scales is None else float(scales[int(scheduler.timesteps[step])])
