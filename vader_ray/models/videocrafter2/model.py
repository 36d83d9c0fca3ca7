"""VideoCrafter2 (``VideoCrafter/VideoCrafter2``, arXiv 2401.09047) as a diffusers pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import open_clip  # type: ignore[import-untyped, unused-ignore]
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from torch import Tensor, nn

from vader_ray.config import ModelConfig, SamplingConfig
from vader_ray.errors import UserError
from vader_ray.models.base import VideoModel
from vader_ray.models.core.decoders import DecoderOptions
from vader_ray.models.core.loading import check_own_parts, quiet
from vader_ray.models.core.meta_pipeline import accept_host_tensors
from vader_ray.models.core.quantization import quantize
from vader_ray.models.videocrafter2 import checkpoint
from vader_ray.models.videocrafter2.checkpoint import TextEncoder
from vader_ray.models.videocrafter2.scheduler import DynamicRescaleDDIMScheduler
from vader_ray.models.videocrafter2.unet import CONDITIONED, UNet
from vader_ray.types import Frames

TextFeatures: TypeAlias = Float[Tensor, "batch tokens context"]
FPS = 24
"""Frame rate that the denoiser is conditioned on, in frames per second: that of the authors of VADER in
training and sampling. The model was trained with 1 to about 30."""


@dataclass
class VideoCrafterOutput(BaseOutput):  # type: ignore[misc]
    """Return value of the pipeline."""

    frames: Frames


class VideoCrafterPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Text-to-video pipeline: OpenCLIP text features, a 3D UNet, an image autoencoder.

    The UNet predicts noise and is conditioned on the frame rate.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: TextEncoder,
        tokenizer: open_clip.SimpleTokenizer,
        unet: UNet,
        scheduler: DynamicRescaleDDIMScheduler,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler
        )
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)

    def encode_prompt(
        self,
        prompt: Sequence[str],
        *,
        do_classifier_free_guidance: bool,
        negative_prompt: Sequence[str] | None = None,
    ) -> tuple[TextFeatures, TextFeatures | None]:
        """Return the features of the prompts and, with guidance, of the negative prompts."""
        negative = negative_prompt or [""] * len(prompt)
        return self._encode(prompt), self._encode(negative) if do_classifier_free_guidance else None

    def _encode(self, texts: Sequence[str]) -> TextFeatures:
        features: Tensor = self.text_encoder(self.tokenizer(list(texts)).to(self.device))
        return features

    @torch.no_grad()
    def __call__(  # noqa: PLR0913
        self,
        prompt: Sequence[str] = (),
        *,
        height: int = 320,
        width: int = 512,
        num_frames: int = 16,
        num_inference_steps: int = 50,
        guidance_scale: float = 12.0,
        eta: float = 1.0,
        fps: int = FPS,
        negative_prompt: Sequence[str] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
    ) -> VideoCrafterOutput:
        """Make videos of prompts, or of their features."""
        guided = guidance_scale > 1
        context = self._encode(prompt) if prompt_embeds is None else prompt_embeds
        batch = len(context)
        if guided:
            if negative_prompt_embeds is None:
                negative_prompt_embeds = self._encode(negative_prompt or [""] * batch)
            context = torch.cat([negative_prompt_embeds, context])
        if latents is None:
            shape = (batch, self.unet.architecture.in_channels, num_frames, *self._latent_size(height, width))
            latents = randn_tensor(shape, generator=generator, device=self.device, dtype=torch.float32)
        self.scheduler.set_timesteps(num_inference_steps)
        for timestep in self.progress_bar(self.scheduler.timesteps):
            doubled = torch.cat([latents] * 2) if guided else latents
            noise = self.unet(doubled, timestep, context, fps, return_dict=False)[0]
            if guided:
                unconditional, conditional = noise.chunk(2)
                noise = unconditional + guidance_scale * (conditional - unconditional)
            latents = self.scheduler.step(
                noise, timestep, latents, eta=eta, generator=generator, return_dict=False
            )[0]
        images = (latents / self.vae.config.scaling_factor).transpose(1, 2).flatten(0, 1)
        decoded = self.vae.decode(images).sample
        return VideoCrafterOutput(frames=(decoded / 2 + 0.5).clamp(0, 1).unflatten(0, (batch, -1)))

    def _latent_size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the latents.

        Raises:
            UserError: the denoiser cannot halve them at each of its levels.
        """
        multiple = self.vae_scale_factor * 2 ** (len(self.unet.architecture.multipliers) - 1)
        if height % multiple or width % multiple:
            raise UserError(
                f"sampling.height={height} and sampling.width={width} must be multiples of {multiple}"
            )
        return height // self.vae_scale_factor, width // self.vae_scale_factor


class VideoCrafter2Model(VideoModel):
    """Noise-predicting 3D UNet, OpenCLIP text encoder, image autoencoder per frame.

    Adapters are saved in peft's format.

    ``weights`` is a hub id, the published ``model.ckpt`` or its folder. The adapter's default layers are
    those of the authors of VADER.
    """

    pipeline_classes = ("VideoCrafterPipeline",)
    denoiser_name = "unet"
    adapter_targets = ("to_q", "to_k", "to_v")
    text_adapter_targets = ("c_fc", "c_proj")  # of attention, torch reads the weights and calls no layer

    @classmethod
    def networks_of(cls, model: ModelConfig) -> list[str]:  # noqa: ARG003
        """Return the names of the networks that can get an adapter; one checkpoint has both."""
        return ["unet", "text_encoder"]

    @classmethod
    def fetch(cls, model: ModelConfig) -> Path:
        """Return the checkpoint's file; that of a hub id is downloaded first."""
        return checkpoint.fetch(model)

    @classmethod
    def load(
        cls, model: ModelConfig, sampling: SamplingConfig, *, chunk_size: int, device: torch.device
    ) -> VideoCrafter2Model:
        """Load the checkpoint to a device, with denoiser and text encoder in ``precision``; no adapter.

        Raises:
            UserError: the checkpoint cannot be loaded, or the scheduler is not that of the model.
        """
        check_own_parts(model, sampling, "VideoCrafter2", DynamicRescaleDDIMScheduler, "dynamic rescale")
        on_meta = device.type == "meta"
        networks = checkpoint.meta_networks(model) if on_meta else checkpoint.read(cls.fetch(model))
        precision, decoder_precision = (
            getattr(torch, model.precision),
            getattr(torch, model.decoder_precision),
        )
        unet = networks.unet.to(precision)
        if model.quantization:
            quantize(cls.denoiser_blocks(unet), model.quantization)
        with quiet():
            pipe = VideoCrafterPipeline(
                vae=networks.vae.to(decoder_precision),
                text_encoder=networks.text_encoder.to(precision),
                tokenizer=open_clip.SimpleTokenizer(),
                unet=unet,
                scheduler=DynamicRescaleDDIMScheduler(),
            ).to(device)
        if on_meta:
            accept_host_tensors(pipe.unet)
        return cls(pipe, sampling, DecoderOptions.of(model, chunk_size))

    @staticmethod
    def denoiser_blocks(denoiser: nn.Module) -> list[nn.Module]:
        return [part for part in denoiser.modules() if isinstance(part, CONDITIONED)]

    @staticmethod
    def deep_blocks(denoiser: nn.Module) -> list[nn.Module]:
        assert isinstance(denoiser, UNet)
        kept = 1 + denoiser.architecture.num_res_blocks  # features that the last level up joins
        return [*denoiser.input_blocks[kept:], denoiser.middle_block, *denoiser.output_blocks[:-kept]]

    def latent_shape(self) -> tuple[int, int, int, int]:
        sampling = self.sampling
        height, width = self.pipe._latent_size(sampling.height, sampling.width)
        return self.pipe.unet.architecture.in_channels, sampling.num_frames, height, width

    def pipeline_kwargs(self) -> dict[str, Any]:
        return super().pipeline_kwargs() | {"eta": self.sampling.eta, "fps": FPS}
