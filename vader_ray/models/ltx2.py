"""LTX-2 (``Lightricks/LTX-2``): videos from text, or from an image, with sound."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_ltx2 import LTX2VideoCausalConv3d
from diffusers.pipelines.ltx2.utils import apply_image_conditioning_crf, resolve_default_image_crf
from diffusers.utils.import_utils import is_av_available
from PIL import Image
from torch import Tensor, nn

from vader_ray.errors import UserError
from vader_ray.models.core.conditioning import Conditioning
from vader_ray.models.core.decoders import Decoder, DecoderOptions
from vader_ray.models.core.loop_hooks import LoopHook, replace_attribute
from vader_ray.models.ltx import LTXModel
from vader_ray.types import Latents, Noise

_SOUND = ("negative_sound_embeds", "sound_embeds")
"""Columns of the conditioning with embeddings for the sound."""


class LTX2Model(LTXModel):
    """Flow-predicting transformer of video and sound, Gemma text encoder; the sound is not decoded.

    With ``guidance_scale`` 1 there is no guidance of any kind, for the video and for the sound; else what the
    setting leaves open is the pipeline's default, three calls of the denoiser in a denoising step. The
    image-to-video pipeline takes one image for all its videos, so videos are sampled one by one there.
    """

    pipeline_classes = ("LTX2Pipeline", "LTX2ImageToVideoPipeline")
    image_pipeline_classes = ("LTX2ImageToVideoPipeline",)
    loads_in_comfyui = False
    splits_tokens = False
    splits_guidance = False
    takes_one_image = True
    continues_frames = False
    no_guidance_kwargs = MappingProxyType(
        {f"{modality}guidance_scale": 1.0 for modality in ("", "audio_")}
        | {f"{modality}modality_scale": 1.0 for modality in ("", "audio_")}
        | {f"{modality}stg_scale": 0.0 for modality in ("", "audio_")}
        | {f"{modality}guidance_rescale": 0.0 for modality in ("", "audio_")}
    )
    embeddings = (*LTXModel.embeddings, *_SOUND)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], images: Sequence[Path] | None = None) -> Conditioning:
        """Encode prompts, and open and compress images, as videos of the model's training data were.

        The prompts' embeddings are those of the connectors, 25 times smaller than those of the text encoder.

        Raises:
            UserError: the model makes videos from images and there are none, or PyAV is not installed.
        """
        with ExitStack() as undo:
            replace_attribute(undo, self.pipe, "encode_prompt", self._encode_prompt())
            conditioning = super().encode(prompts, images)
        if self.is_image_to_video:
            conditioning.tensors["image"] = [
                self._compressed(image) for image in conditioning.tensors["image"]
            ]
        return conditioning

    def _encode_prompt(self) -> Any:
        """Return the pipeline's ``encode_prompt`` with the connectors, which the loop calls after it."""
        encode = self.pipe.encode_prompt

        @functools.wraps(encode)
        def encode_prompt(*args: Any, **kwargs: Any) -> tuple[Tensor | None, ...]:
            positive, mask, negative, negative_mask = encode(*args, **kwargs)
            both = positive if negative is None else torch.cat([negative, positive])
            masks = mask if negative is None else torch.cat([negative_mask, mask])
            side = self.pipe.tokenizer.padding_side
            columns = [
                each.split(len(positive)) for each in self.pipe.connectors(both, masks, padding_side=side)
            ]
            video, sound, mask = (column[-1] for column in columns)
            if negative is None:
                return video, mask, None, None, None, sound
            negative, negative_sound, negative_mask = (column[0] for column in columns)
            return video, mask, negative, negative_mask, negative_sound, sound

        return encode_prompt

    def _compressed(self, image: Image.Image) -> Image.Image:
        if not is_av_available():
            raise UserError(
                "model.weights: LTX-2 compresses an image as H.264 before it makes a video from it, which "
                "needs the package PyAV; install it: pip install av"
            )
        quality = resolve_default_image_crf(self.pipe.text_encoder)
        return Image.fromarray(apply_image_conditioning_crf(np.asarray(image), quality))

    def build_decoder(self, options: DecoderOptions) -> Decoder:
        for module in self.pipe.vae.decoder.modules():
            if isinstance(module, LTX2VideoCausalConv3d):
                module.is_causal = self.pipe.vae.decoder.is_causal
        return super().build_decoder(options)

    def pack_latents(self, noise: Noise) -> Tensor:
        """Return noise as the pipeline takes it: it subtracts a mean and divides by a deviation."""
        vae = self.pipe.vae
        latents: Tensor = self.pipe._denormalize_latents(
            noise, vae.latents_mean, vae.latents_std, vae.config.scaling_factor
        )
        return latents

    def pipeline_kwargs(self) -> dict[str, Any]:
        without = dict(self.no_guidance_kwargs) if self.sampling.guidance_scale == 1 else {}
        return {**super().pipeline_kwargs(), **without}

    def text_encoders(self) -> dict[str, nn.Module]:
        further = {name: getattr(self.pipe, name) for name in ("connectors", "prompt_enhancer")}
        return super().text_encoders() | {name: each for name, each in further.items() if each is not None}

    def _run_pipeline(
        self, latents: Tensor, conditioning: Conditioning, hook: LoopHook, **changes: float
    ) -> Latents:
        columns: dict[str, Any] = dict(conditioning.tensors)
        sound = torch.cat([columns.pop(name) for name in _SOUND if name in columns])

        def connectors(video: Tensor, mask: Tensor, **_: str) -> tuple[Tensor, Tensor, Tensor]:
            return video, sound, mask

        attributes = vars(self.pipe)  # an assignment would change the pipeline's configuration, too
        before = attributes["connectors"]
        attributes["connectors"] = connectors
        try:
            return super()._run_pipeline(latents, Conditioning(columns), hook, **changes)
        finally:
            attributes["connectors"] = before

    def latents_with_images(self, latents: Tensor, images: Any, hook: LoopHook) -> Tensor:
        """Return the pipeline's latents with the first latent frame of the encoded images."""
        pipe, (height, width) = self.pipe, (self.sampling.height, self.sampling.width)
        pixels = pipe.video_processor.preprocess(images, height=height, width=width).to(latents)
        encoded = pipe.vae.encode(pixels[:, :, None]).latent_dist.mode()
        return torch.cat([encoded.to(latents), latents[:, :, 1:]], dim=2)
