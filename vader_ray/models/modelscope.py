"""ModelScope text-to-video (``ali-vilab/text-to-video-ms-1.7b``) and other UNet3D pipelines in its diffusers layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import TextToVideoSDPipeline

from vader_ray.config import ModelConfig, SamplingConfig
from vader_ray.models._codec import Framewise2D
from vader_ray.models._loading import load_pipeline
from vader_ray.models._pipeline import Conditioning, PipelineModel


class Model(PipelineModel):
    """Noise-predicting 3D UNet, CLIP text encoder, image autoencoder per frame. Adapters are saved in peft's format."""

    denoiser_name = "unet"

    @classmethod
    def load(cls, model: ModelConfig, sampling: SamplingConfig, *, chunk_size: int, device: torch.device) -> Model:
        """The pretrained pipeline on a device."""
        pipe = load_pipeline(TextToVideoSDPipeline, model, sampling, device)
        return cls(pipe, sampling, Framewise2D(pipe.vae, chunk_size))

    def latent_shape(self) -> tuple[int, int, int, int]:
        scale, sampling = self.pipe.vae_scale_factor, self.sampling
        return self.denoiser.config.in_channels, sampling.num_frames, sampling.height // scale, sampling.width // scale  # type: ignore[union-attr,return-value]

    def call_arguments(self) -> dict[str, Any]:
        return super().call_arguments() | {"eta": self.sampling.eta}

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """CLIP embeddings of the prompts, and of the negative prompt when guidance is on."""
        guided = self.sampling.guidance_scale > 1
        negative = [self.sampling.negative_prompt] * len(prompts) if guided else None
        positive, unconditional = self.pipe.encode_prompt(list(prompts), self.pipe.device, 1, guided, negative)
        tensors = {"prompt_embeds": positive}
        if guided:
            tensors["negative_prompt_embeds"] = unconditional
        return Conditioning(tensors)
