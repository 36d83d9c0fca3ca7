"""The decoder of each class of autoencoders in diffusers."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKL, AutoencoderKLHunyuanVideo, AutoencoderKLWan

from vader_ray.models.core.decoders import Decoder, DecoderOptions, Framewise2D, WholeClip
from vader_ray.models.core.hunyuan_video_decoder import HunyuanVideoStream
from vader_ray.models.core.wan_decoder import WanStream


def decoder_of(vae: Any, frames_per_latent: int, options: DecoderOptions) -> Decoder:
    """Return the decoder of an autoencoder that several families share; of others, that of a whole clip.

    Args:
        vae: an autoencoder of diffusers, for images or for videos.
        frames_per_latent: frames of every latent frame but the first, which is one frame.
        options: how it decodes.
    """
    if isinstance(vae, AutoencoderKL):
        return Framewise2D(vae, options.chunk_size)
    if isinstance(vae, AutoencoderKLWan):
        return WanStream(vae, offload_cache=options.offload_cache)
    if isinstance(vae, AutoencoderKLHunyuanVideo):
        return HunyuanVideoStream(vae, offload_cache=options.offload_cache)
    return WholeClip(vae, frames_per_latent)
