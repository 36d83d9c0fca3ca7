"""AnimateDiff's motion modules, which are published apart from the image model that they animate."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDIMScheduler, MotionAdapter, UNetMotionModel

SCHEDULER = {
    "beta_schedule": "linear",
    "clip_sample": False,
    "steps_offset": 1,
    "timestep_spacing": "linspace",
}
"""Settings of DDIM for the published motion modules, as in diffusers' documentation of AnimateDiff."""


def load_motion_adapter(source: str, dtype: torch.dtype) -> MotionAdapter:
    """Load motion modules from a folder in diffusers' format or from the hub."""
    return MotionAdapter.from_pretrained(source, dtype=dtype)


def animate_on_meta(unet: torch.nn.Module, source: str, dtype: torch.dtype) -> UNetMotionModel:
    """Return an image model's UNet with motion modules on the meta device; reads no weights."""
    with torch.device("meta"):
        adapter = MotionAdapter.from_config(MotionAdapter.load_config(source))
        return UNetMotionModel.from_unet2d(unet, adapter).to(dtype)


def finish_animation(pipe: Any) -> None:
    """Give a pipeline the scheduler of the motion modules, and drop their copy: the denoiser has them."""
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, **SCHEDULER)
    pipe.register_modules(motion_adapter=None)
