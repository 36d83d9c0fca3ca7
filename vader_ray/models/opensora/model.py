"""Open-Sora 1.2 (``hpcai-tech/OpenSora-STDiT-v3``, arXiv 2412.20404) as a diffusers pipeline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers import DiffusionPipeline, PixArtAlphaPipeline
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import T5EncoderModel

from vader_ray.config import ModelConfig, SamplingConfig
from vader_ray.errors import UserError
from vader_ray.models.base import VideoModel
from vader_ray.models.core.decoders import DecoderOptions
from vader_ray.models.core.loading import check_own_parts, quiet
from vader_ray.models.core.meta_pipeline import accept_host_tensors
from vader_ray.models.core.quantization import quantize
from vader_ray.models.opensora import checkpoint
from vader_ray.models.opensora.decoder import OpenSoraStream
from vader_ray.models.opensora.denoiser import STDiT3
from vader_ray.models.opensora.scheduler import RectifiedFlowScheduler, noise_ratio
from vader_ray.models.opensora.vae import CLIP_FRAMES, CLIP_LATENTS, FRAMES_PER_LATENT, VideoAutoencoder
from vader_ray.types import Frames

TextFeatures: TypeAlias = Float[Tensor, "batch tokens context"]
TextMask: TypeAlias = Int[Tensor, "batch tokens"]
FPS = 24
"""Frame rate that the denoiser is conditioned on, in frames per second."""
IMAGE_FPS = 120
"""Frame rate of a single frame, as in training."""
AESTHETIC_SCORE = 6.5
"""Score that is appended to prompts; in training, it was the LAION aesthetic score of the video."""
PIXELS_PER_LATENT = 8


@dataclass
class OpenSoraOutput(BaseOutput):  # type: ignore[misc]
    """Return value of the pipeline."""

    frames: Frames


class OpenSoraPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Text-to-video pipeline: T5 text features, a transformer, an autoencoder of clips.

    The transformer predicts the velocity of a rectified flow, and is conditioned on the frame rate and on the
    size of the video.
    """

    bad_punct_regex = PixArtAlphaPipeline.bad_punct_regex
    _clean_caption = PixArtAlphaPipeline._clean_caption
    _text_preprocessing = PixArtAlphaPipeline._text_preprocessing

    def __init__(
        self,
        vae: VideoAutoencoder,
        text_encoder: T5EncoderModel,
        tokenizer: Any,
        transformer: STDiT3,
        scheduler: RectifiedFlowScheduler,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            transformer=transformer,
            scheduler=scheduler,
        )

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: Sequence[str],
        *,
        do_classifier_free_guidance: bool = True,
        aesthetic_score: float | None = AESTHETIC_SCORE,
        motion_score: float | None = None,
        clean_caption: bool = True,
    ) -> tuple[TextFeatures, TextMask, TextFeatures | None]:
        """Return the features of the prompts, their masks and, with guidance, features of no prompt.

        The features of no prompt were learnt; they have the mask of the prompt.

        Args:
            prompt: texts.
            do_classifier_free_guidance: whether there is guidance.
            aesthetic_score: appended to each prompt that has none; None appends nothing.
            motion_score: likewise; in training, it was the optical flow of the video.
            clean_caption: remove addresses, file names and the like, as in training (needs ``bs4`` and
                ``ftfy``); otherwise prompts are put in lower case alone.
        """
        scores = {"aesthetic score": aesthetic_score, "motion score": motion_score}
        texts = self._text_preprocessing([_with_scores(text, scores) for text in prompt], clean_caption)
        tokens = self.tokenizer(
            texts,
            max_length=self.transformer.architecture.num_tokens,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).to(self.device)
        features = self.text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        negative = self._no_prompt(features) if do_classifier_free_guidance else None
        return features, tokens.attention_mask, negative

    def _no_prompt(self, like: TextFeatures) -> TextFeatures:
        """Return the features of no prompt, one for each prompt."""
        rows: Tensor = self.transformer.empty_prompt.to(like).expand_as(like)
        return rows

    @torch.no_grad()
    def __call__(  # noqa: PLR0913
        self,
        prompt: Sequence[str] = (),
        *,
        height: int = 240,
        width: int = 426,
        num_frames: int = 51,
        num_inference_steps: int = 30,
        guidance_scale: float = 7.0,
        fps: int = FPS,
        aesthetic_score: float | None = AESTHETIC_SCORE,
        motion_score: float | None = None,
        clean_caption: bool = True,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
    ) -> OpenSoraOutput:
        """Make videos of prompts, or of their features.

        Height and width of the frames are rounded down to multiples of 8. The sizes on which the denoiser is
        conditioned are not, so that the sizes of the published program can be given.
        """
        guided = guidance_scale > 1
        if prompt_embeds is None:
            prompt_embeds, prompt_attention_mask, negative_prompt_embeds = self.encode_prompt(
                prompt,
                do_classifier_free_guidance=guided,
                aesthetic_score=aesthetic_score,
                motion_score=motion_score,
                clean_caption=clean_caption,
            )
        if latents is None:
            shape = (len(prompt_embeds), *self.latent_shape(num_frames, height, width))
            latents = randn_tensor(shape, generator=generator, device=self.device, dtype=torch.float32)
        if prompt_attention_mask is None:
            prompt_attention_mask = torch.ones_like(prompt_embeds[:, :, 0], dtype=torch.long)
        if guided:
            if negative_prompt_embeds is None:
                negative_prompt_embeds = self._no_prompt(prompt_embeds)
            prompt_embeds = torch.cat([negative_prompt_embeds, prompt_embeds])
            prompt_attention_mask = torch.cat([prompt_attention_mask] * 2)
        rate = fps if num_frames > 1 else IMAGE_FPS
        self.scheduler.set_timesteps(num_inference_steps, ratio=noise_ratio(height, width, num_frames))
        for timestep in self.progress_bar(self.scheduler.timesteps):
            doubled = torch.cat([latents] * 2) if guided else latents
            velocity = self.transformer(
                doubled,
                timestep.to(doubled.device).expand(len(doubled)),
                prompt_embeds,
                prompt_attention_mask,
                rate,
                height,
                width,
                return_dict=False,
            )[0]
            if guided:
                unconditional, conditional = velocity.chunk(2)
                velocity = unconditional + guidance_scale * (conditional - unconditional)
            latents = self.scheduler.step(-velocity, timestep, latents, return_dict=False)[0]
        decoded = self.vae.decode(latents, num_frames)
        frames = decoded.to(torch.promote_types(decoded.dtype, torch.float32)).transpose(1, 2)
        return OpenSoraOutput(frames=(frames / 2 + 0.5).clamp(0, 1))

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Return channels, frames, height and width of the latents of one video.

        Raises:
            UserError: the timestep transform is not defined for this number of frames.
        """
        if 1 < num_frames < CLIP_FRAMES:
            raise UserError(
                f"sampling.num_frames={num_frames}: this model makes 1 frame or at least {CLIP_FRAMES}; "
                f"choose a multiple of {CLIP_FRAMES}, such as 51"
            )
        clips, rest = divmod(num_frames, CLIP_FRAMES)
        num_latents = clips * CLIP_LATENTS + math.ceil(rest / FRAMES_PER_LATENT)
        sides = height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT
        return self.vae.latent_channels, num_latents, *sides


def _with_scores(text: str, scores: dict[str, float | None]) -> str:
    for name, score in scores.items():
        if score is not None and f"{name}:" not in text:
            text = f"{text} {name}: {score:.1f}."
    return text


class OpenSoraModel(VideoModel):
    """Velocity-predicting transformer, T5 text encoder, causal autoencoder of clips of 17 frames.

    Adapters are saved in peft's format.

    ``weights`` is the denoiser's hub id, or a folder with copies of the three repositories
    (`vader_ray.models.opensora.checkpoint.SUBFOLDERS`). The adapter's default layers are those of the authors
    of VADER.
    """

    pipeline_classes = ("OpenSoraPipeline",)
    adapter_targets = ("qkv", "q_linear", "kv_linear")
    loads_in_comfyui = False
    embeddings = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds")

    def __init__(self, pipe: Any, sampling: SamplingConfig, decoder_options: DecoderOptions) -> None:
        if sampling.negative_prompt:
            raise UserError(
                "sampling.negative_prompt: Open-Sora's guidance has a learnt embedding in its place; leave "
                "the setting out"
            )
        super().__init__(pipe, sampling, decoder_options)

    @classmethod
    def networks_of(cls, model: ModelConfig) -> list[str]:  # noqa: ARG003
        """Return the name of the network that can get an adapter."""
        return [cls.denoiser_name]

    @classmethod
    def fetch(cls, model: ModelConfig) -> Path:
        """Return the denoiser's folder; the weights of hub ids are downloaded first."""
        return checkpoint.fetch(model)

    @classmethod
    def load(
        cls, model: ModelConfig, sampling: SamplingConfig, *, chunk_size: int, device: torch.device
    ) -> OpenSoraModel:
        """Load the weights to a device, with denoiser and text encoder in ``precision``; no adapter.

        Raises:
            UserError: the weights cannot be loaded, or the scheduler is not that of the model.
        """
        check_own_parts(model, sampling, "Open-Sora", RectifiedFlowScheduler, "timestep transform")
        on_meta = device.type == "meta"
        with torch.device("meta" if on_meta else "cpu"):
            transformer, vae = checkpoint.read_networks(model)
            text_encoder, tokenizer = checkpoint.read_text_encoder(model)
        transformer.to(getattr(torch, model.precision))
        if model.quantization:
            quantize(cls.denoiser_blocks(transformer), model.quantization)
        with quiet():
            pipe = OpenSoraPipeline(
                vae=vae.to(getattr(torch, model.decoder_precision)),
                text_encoder=text_encoder,
                tokenizer=tokenizer,
                transformer=transformer,
                scheduler=RectifiedFlowScheduler(),
            ).to(device)
        if on_meta:
            accept_host_tensors(pipe.transformer)
            accept_host_tensors(pipe.text_encoder)
        return cls(pipe, sampling, DecoderOptions.of(model, chunk_size))

    @staticmethod
    def denoiser_blocks(denoiser: nn.Module) -> list[nn.Module]:
        assert isinstance(denoiser, STDiT3)
        return [*denoiser.spatial_blocks, *denoiser.temporal_blocks]

    def build_decoder(self, options: DecoderOptions) -> OpenSoraStream:
        return OpenSoraStream(
            self.pipe.vae, self.sampling.num_frames, options.chunk_size, offload_cache=options.offload_cache
        )

    def latent_shape(self) -> tuple[int, int, int, int]:
        """Return channels, frames, height and width of one video's noise.

        Raises:
            UserError: the pipeline would round the size of the video.
        """
        sampling = self.sampling
        if sampling.height % PIXELS_PER_LATENT or sampling.width % PIXELS_PER_LATENT:
            raise UserError(
                f"sampling.height={sampling.height} and sampling.width={sampling.width} must be multiples of "
                f"{PIXELS_PER_LATENT}"
            )
        shape: tuple[int, int, int, int] = self.pipe.latent_shape(
            sampling.num_frames, sampling.height, sampling.width
        )
        return shape
