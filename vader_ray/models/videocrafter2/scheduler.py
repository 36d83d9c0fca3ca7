"""DDIM with dynamic rescale, the scheduler of VideoCrafter2."""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from torch import Tensor


class DynamicRescaleDDIMScheduler(DDIMScheduler):  # type: ignore[misc]
    """DDIM (arXiv 2010.02502) for a model that was trained on scaled clean latents.

    The scale depends on the timestep.

    The factor falls linearly from 1 to ``base_scale`` over the first ``rescale_steps`` timesteps and is
    constant afterwards. Each denoising step divides x₀ by the factor s of its timestep and multiplies it by
    the factor s′ of the next one: ``x′ = √ᾱ′ · s′ · x₀/s + √(1 − ᾱ′ − σ²) · ε + σ · noise`` (formula 12 there
    with s and s′). Defaults are VideoCrafter2's.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(  # noqa: PLR0913
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "scaled_linear",
        clip_sample: bool = False,
        set_alpha_to_one: bool = False,
        steps_offset: int = 1,
        base_scale: float = 0.7,
        rescale_steps: int = 400,
    ) -> None:
        super().__init__(
            num_train_timesteps=num_train_timesteps,
            beta_start=beta_start,
            beta_end=beta_end,
            beta_schedule=beta_schedule,
            clip_sample=clip_sample,
            set_alpha_to_one=set_alpha_to_one,
            steps_offset=steps_offset,
        )
        falling = torch.linspace(1, base_scale, rescale_steps)
        self.scales = torch.cat([falling, torch.full((num_train_timesteps - rescale_steps,), base_scale)])

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[Tensor, Tensor]:
        """Return the sample of the next denoising step and the predicted clean latents."""
        plain = super().step(
            model_output,
            timestep,
            sample,
            eta=eta,
            generator=generator,
            variance_noise=variance_noise,
            return_dict=True,
        )
        following = max(int(timestep) - self.config.num_train_timesteps // self.num_inference_steps, 0)
        scale, next_scale = self.scales[int(timestep)], self.scales[following]
        clean = plain.pred_original_sample / scale
        # super().step has added √ᾱ′ · x₀ instead of √ᾱ′ · s′ · x₀/s
        previous = plain.prev_sample + self.alphas_cumprod[following].sqrt() * (next_scale - scale) * clean
        return DDIMSchedulerOutput(previous, clean) if return_dict else (previous, clean)
