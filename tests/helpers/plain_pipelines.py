"""Plain pipelines over a tiny UNet and a tiny video transformer in float64, with any scheduler: a short
loop, and a decoder that returns the squashed latents as frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import diffusers as d
import pytest
import torch
from torch import Tensor

from vader_ray.config import AdapterConfig, SamplingConfig
from vader_ray.models.base import VideoModel
from vader_ray.models.core.conditioning import Conditioning
from vader_ray.models.core.decoders import DecoderOptions
from vader_ray.types import Frames, Latents

SHAPE = (3, 2, 4, 4)
"""Channels, frames, height and width of the latents."""
NETWORKS = ("transformer", pytest.param("unet", marks=pytest.mark.slow))  # one takes four times as long
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SCHEDULERS: dict[str, Callable[[], Any]] = {
    "ddim": lambda: d.DDIMScheduler(**_BETAS, clip_sample=False, set_alpha_to_one=True),
    "ddim_v": lambda: d.DDIMScheduler(**_BETAS, clip_sample=False, prediction_type="v_prediction"),
    "edm": lambda: d.EulerDiscreteScheduler(**_BETAS, use_karras_sigmas=True),
    "flow": lambda: d.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "unipc": lambda: d.UniPCMultistepScheduler(**_FLOW),
    "dpm": lambda: d.DPMSolverMultistepScheduler(**_BETAS),
}


class _Denoiser(torch.nn.Module):
    """One of the two networks, called with latents ``batch channels frames height width``."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.network = _unet() if kind == "unet" else _transformer()

    def forward(self, hidden_states: Tensor, timestep: Tensor, embeds: Tensor) -> Any:
        if self.kind == "unet":
            return self.network(hidden_states, timestep, embeds)
        steps = timestep.expand(len(hidden_states))
        output = self.network(hidden_states.transpose(1, 2), embeds, steps).sample
        return SimpleNamespace(sample=output.transpose(1, 2))


def _unet() -> Any:
    return d.UNet3DConditionModel(
        sample_size=4,
        in_channels=SHAPE[0],
        out_channels=SHAPE[0],
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=8,
        down_block_types=("CrossAttnDownBlock3D",),
        up_block_types=("CrossAttnUpBlock3D",),
    )


def _transformer() -> Any:
    return d.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=SHAPE[0],
        out_channels=SHAPE[0],
        time_embed_dim=4,
        text_embed_dim=8,
        num_layers=1,
        sample_width=4,
        sample_height=4,
        sample_frames=5,
        max_text_seq_length=3,
    )


class _Decoder:
    """Frames are the latents, squashed to [0, 1]; counts its calls."""

    chunks_are_independent = True

    def __init__(self) -> None:
        self.num_calls = 0

    def num_frames(self, latents: Latents) -> int:
        return latents.shape[2]

    def chunks(self, latents: Latents, wanted: Sequence[int]) -> list[tuple[int, ...]]:
        return [tuple(range(latents.shape[2]))]

    def decode(self, latents: Latents, state: Any, chunk: tuple[int, ...]) -> tuple[Frames, Any]:
        self.num_calls += 1
        return decoded(latents), state

    def finished(self, frames: Frames) -> Frames:
        return frames


def decoded(latents: Latents) -> Frames:
    """The decoder's formula."""
    return torch.sigmoid(latents).transpose(1, 2)


class _Pipeline:
    def __init__(self, kind: str, scheduler: Any) -> None:
        torch.manual_seed(0)
        self.denoiser, self.scheduler = _Denoiser(kind).double(), scheduler
        for parameter in self.denoiser.parameters():
            if not parameter.any():  # zero-initialised layers would hide errors
                torch.nn.init.normal_(parameter, std=0.2)
        self.vae, self.device = SimpleNamespace(decode=lambda latents: latents), torch.device("cpu")
        self.components = {"denoiser": self.denoiser}

    def set_progress_bar_config(self, **settings: Any) -> None: ...

    def predict(self, sample: Tensor, step: int, embeds: Tensor, scale: float) -> Tensor:
        """The prediction of a denoising step with guidance; the scheduler's timesteps are set."""
        timestep = self.scheduler.timesteps[step]
        if isinstance(self.scheduler, d.EulerDiscreteScheduler):
            sigma = float(self.scheduler.sigmas[step])
            sample = sample / (sigma**2 + 1) ** 0.5
        if scale == 1:
            return self.denoiser(sample, timestep, embeds.chunk(2)[1]).sample
        without, with_prompt = self.denoiser(torch.cat([sample] * 2), timestep, embeds).sample.chunk(2)
        return without + scale * (with_prompt - without)

    def __call__(
        self, latents: Tensor, embeds: Tensor, num_inference_steps: int, guidance_scale: float, **rest: Any
    ) -> Tensor:
        self.scheduler.set_timesteps(num_inference_steps)
        for step, timestep in enumerate(self.scheduler.timesteps):
            if hasattr(self.scheduler, "is_scale_input_called"):
                self.scheduler.scale_model_input(latents, timestep)
            predicted = self.predict(latents, step, torch.cat([-embeds, embeds]), guidance_scale)
            latents = self.scheduler.step(predicted, timestep, latents).prev_sample
        return self.vae.decode(latents)


class _PlainModel(VideoModel):
    denoiser_name = "denoiser"

    def build_decoder(self, options: DecoderOptions) -> Any:
        return _Decoder()

    def latent_shape(self) -> tuple[int, int, int, int]:
        return SHAPE


def plain_model(kind: str, scheduler: str, *, num_steps: int = 6, guidance_scale: float = 3.0) -> Any:
    """The model with an adapter that changes its predictions."""
    sampling = SamplingConfig(
        num_frames=SHAPE[1],
        height=SHAPE[2],
        width=SHAPE[3],
        num_inference_steps=num_steps,
        guidance_scale=guidance_scale,
    )
    model = _PlainModel(_Pipeline(kind, SCHEDULERS[scheduler]()), sampling, DecoderOptions())
    model.add_adapter(AdapterConfig(rank=2, alpha=4.0), seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.adapter_parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3
    return model


def conditioning(num_videos: int) -> Conditioning:
    """Random embeddings of as many prompts."""
    generator = torch.Generator().manual_seed(2)
    return Conditioning({"embeds": torch.randn(num_videos, 3, 8, generator=generator).double()})
