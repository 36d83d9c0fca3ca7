"""The smallest pipeline whose gradient has a closed form: DDIM over ε = θ·x, with θ as the adapter, and an
identity decoder."""

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from vader_ray.config import SamplingConfig
from vader_ray.models.base import VideoModel
from vader_ray.models.core.decoders import DecoderOptions


class _Denoiser(torch.nn.Module):
    def __init__(self, theta: float) -> None:
        super().__init__()
        self.frozen = torch.nn.Parameter(torch.zeros((), dtype=torch.float64), requires_grad=False)
        self.theta = torch.nn.Parameter(torch.tensor(theta, dtype=torch.float64))

    def forward(self, sample: Tensor, timestep: Tensor) -> Any:
        return SimpleNamespace(sample=self.theta * sample)


class _Autoencoder(torch.nn.Module):
    def decode(self, latents: Tensor) -> Tensor:
        return latents


class _Pipeline:
    def __init__(self, theta: float, eta: float) -> None:
        self.transformer, self.vae, self.device = _Denoiser(theta), _Autoencoder(), torch.device("cpu")
        self.scheduler, self.components = (
            DDIMScheduler(clip_sample=False, set_alpha_to_one=True),
            dict[str, Any](),
        )
        self.eta = eta

    def set_progress_bar_config(self, **settings: Any) -> None: ...

    def __call__(self, latents: Tensor, num_inference_steps: int, generator: Any, **settings: Any) -> Tensor:
        self.scheduler.set_timesteps(num_inference_steps)
        for timestep in self.scheduler.timesteps:
            predicted = self.transformer(latents, timestep).sample
            latents = self.scheduler.step(
                predicted, timestep, latents, eta=self.eta, generator=generator
            ).prev_sample
        return self.vae.decode(latents)


class _LinearModel(VideoModel):
    def __init__(self, pipe: Any, sampling: SamplingConfig, shape: tuple[int, int, int, int]) -> None:
        super().__init__(pipe, sampling, DecoderOptions())
        self._shape = shape

    def build_decoder(self, options: DecoderOptions) -> Any:
        return SimpleNamespace(num_frames=len, chunks=len, decode=len)  # never used

    def latent_shape(self) -> tuple[int, int, int, int]:
        return self._shape


def linear_model(theta: float, num_steps: int, shape: tuple[int, int, int, int], *, eta: float = 0.0) -> Any:
    """A model of one frame whose denoiser has a single trainable number."""
    pipe = _Pipeline(theta, eta)
    sampling = SamplingConfig(num_frames=1, height=8, width=8, num_inference_steps=num_steps, eta=eta)
    return _LinearModel(pipe, sampling, shape)
