"""Open-Sora 1.2's scheduler: Euler's method for a rectified flow, with its timestep transform."""

from __future__ import annotations

import math

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput
from torch import Tensor

from vader_ray.models.opensora.denoiser import BASE_SIDE
from vader_ray.models.opensora.vae import CLIP_FRAMES, CLIP_LATENTS


def noise_ratio(height: int, width: int, num_frames: int) -> float:
    """Return the ratio r of the timestep transform, the root of the size of the latents.

    It is 1 for an image of `BASE_SIDE` × `BASE_SIDE` pixels; larger and longer videos need more noise
    (arXiv 2412.20404, as in arXiv 2403.03206, section 5.3.2).

    Args:
        height: of a frame in pixels.
        width: of a frame in pixels.
        num_frames: 1, or at least `CLIP_FRAMES`.
    """
    num_latents = 1 if num_frames == 1 else num_frames // CLIP_FRAMES * CLIP_LATENTS
    return math.sqrt(height * width) / BASE_SIDE * math.sqrt(num_latents)


class RectifiedFlowScheduler(FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
    """Euler's method for a rectified flow (arXiv 2209.03003, algorithm 1) in the dtype of the sample.

    The noise levels 1, 1 − 1/N, …, 1/N become t′ = r·t / (1 + (r − 1)·t).
    """

    def set_timesteps(self, num_inference_steps: int, *, ratio: float = 1.0) -> None:
        """Set the noise levels; they stay on the CPU, in float64.

        Args:
            num_inference_steps: number of denoising steps N.
            ratio: r, see `noise_ratio`.
        """
        levels = 1 - torch.arange(num_inference_steps + 1, dtype=torch.float64) / num_inference_steps
        self.num_inference_steps = num_inference_steps
        self.sigmas = ratio * levels / (1 + (ratio - 1) * levels)
        self.timesteps = self.sigmas[:-1] * self.config.num_train_timesteps
        self._step_index = 0

    def step(
        self, model_output: Tensor, timestep: Tensor, sample: Tensor, return_dict: bool = True
    ) -> FlowMatchEulerDiscreteSchedulerOutput | tuple[Tensor]:
        """Return the sample of the next denoising step.

        Args:
            model_output: predicted flow, noise minus latents.
            timestep: unused, as steps are counted.
            sample: before the step.
            return_dict: return a dataclass instead of a tuple.
        """
        change = float(self.sigmas[self._step_index + 1] - self.sigmas[self._step_index])
        self._step_index += 1
        previous = sample + change * model_output
        return FlowMatchEulerDiscreteSchedulerOutput(previous) if return_dict else (previous,)
