"""Read Open-Sora 1.2's published weights: three repositories, of denoiser, autoencoder and text encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, T5EncoderModel

from vader_ray.config import ModelConfig, locate
from vader_ray.errors import UserError
from vader_ray.models.core.image_autoencoder import level_widths, meta_autoencoder
from vader_ray.models.core.loading import explained, quiet
from vader_ray.models.opensora.denoiser import Architecture, STDiT3
from vader_ray.models.opensora.vae import IMAGE_SCALE, TemporalArchitecture, VideoAutoencoder
from vader_ray.paths import expand_user
from vader_ray.weights import load_strictly, read_state_dict, resolve_weights, without_weights

NetworkT = TypeVar("NetworkT", bound=nn.Module)
FILE = "model.safetensors"
DENOISER = "hpcai-tech/OpenSora-STDiT-v3"
VAE, TEXT_ENCODER = "hpcai-tech/OpenSora-VAE-v1.2", "DeepFloyd/t5-v1_1-xxl"
"""Hub ids of the parts that belong to every denoiser."""
SUBFOLDERS = ("transformer", "vae", "text_encoder")
"""Folders of a local copy; each has the files of one repository."""
SPATIAL, TEMPORAL = "spatial_vae.module.", "temporal_vae."
"""Prefixes of the names of the two autoencoders' weights."""
PUBLISHED = Architecture(
    in_channels=4,
    out_channels=8,
    width=1152,
    depth=28,
    num_heads=16,
    mlp_width=4608,
    patch=(1, 2, 2),
    context_size=4096,
    num_tokens=300,
)
"""Sizes of the denoiser of `DENOISER`."""
PUBLISHED_TEMPORAL = TemporalArchitecture(
    channels=4,
    latent_channels=4,
    width=128,
    multipliers=(1, 2, 2, 4),
    halves=(False, True, True),
    num_res_blocks=4,
)
"""Sizes of the autoencoder in time of `VAE`."""


def fetch(model: ModelConfig) -> Path:
    """Return the denoiser's folder; the weights of hub ids are downloaded first.

    Raises:
        UserError: they do not exist or cannot be downloaded.
    """
    sources = _sources(model)
    _fetch_text_encoder(sources["text_encoder"])
    return [_file(sources[part]) for part in ("vae", "transformer")][-1].parent


def _sources(model: ModelConfig) -> dict[str, str]:
    """Return the folder or hub id of each part.

    Raises:
        UserError: a local copy lacks a part.
    """
    folder = expand_user(locate(model.weights))
    if not folder.exists():
        return dict(zip(SUBFOLDERS, (model.weights, VAE, TEXT_ENCODER), strict=True))
    if missing := [name for name in SUBFOLDERS if not (folder / name).is_dir()]:
        raise UserError(
            f"model.weights: {folder} has no folder {' or '.join(missing)}; give {DENOISER}, or a folder "
            f"with {', '.join(SUBFOLDERS)}: copies of the hub's {DENOISER}, {VAE} and {TEXT_ENCODER}"
        )
    return {name: str(folder / name) for name in SUBFOLDERS}


def _file(source: str) -> Path:
    return resolve_weights(source, FILE) / FILE


def _fetch_text_encoder(source: str) -> str:
    """Return the local folder of the text encoder."""
    if Path(source).exists():
        return source
    with explained(source), quiet():
        return str(snapshot_download(source))


def read_networks(model: ModelConfig) -> tuple[STDiT3, VideoAutoencoder]:
    """Read denoiser and autoencoder, in the precision of the files.

    On the meta device they have the sizes of a local copy, or else the published sizes.

    Raises:
        UserError: a file is missing or damaged, or its weights are not exactly those of the network.
    """
    sources = _sources(model)
    denoiser, vae = (_file(sources[part]) for part in ("transformer", "vae"))
    return _read(denoiser, _denoiser, "denoiser"), _read(vae, _autoencoder, "autoencoder")


def _read(file: Path, build: Callable[[Mapping[str, Tensor]], NetworkT], what: str) -> NetworkT:
    state = read_state_dict(file)
    try:
        with torch.device("meta"):
            network = build(state)
    except KeyError as error:
        raise UserError(f"{file} is not Open-Sora's {what}: it has no weight {error}") from None
    load_strictly(network, state, file)
    return network


def _denoiser(weights: Mapping[str, Tensor]) -> STDiT3:
    return STDiT3(Architecture.read(weights) if weights else PUBLISHED)


def _autoencoder(weights: Mapping[str, Tensor]) -> VideoAutoencoder:
    spatial, temporal = (
        {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        for prefix in (SPATIAL, TEMPORAL)
    )
    return VideoAutoencoder(
        _image_autoencoder(spatial) if weights else meta_autoencoder((128, 256, 512, 512), 2, 4, IMAGE_SCALE),
        TemporalArchitecture.read(temporal) if weights else PUBLISHED_TEMPORAL,
    )


def _image_autoencoder(weights: Mapping[str, Tensor]) -> AutoencoderKL:
    widths = level_widths(weights, "encoder.down_blocks.{}.resnets.0.conv1.bias")
    first = "encoder.down_blocks.0.resnets."
    num_blocks = sum(name.startswith(first) and name.endswith("conv1.bias") for name in weights)
    return meta_autoencoder(widths, num_blocks, len(weights["post_quant_conv.bias"]), IMAGE_SCALE)


def read_text_encoder(model: ModelConfig) -> tuple[T5EncoderModel, Any]:
    """Read the text encoder in the recipe's precision, and its tokenizer.

    On the meta device the encoder has no weights; its configuration and the tokenizer are read.

    Raises:
        UserError: they cannot be loaded.
    """
    source, dtype = _sources(model)["text_encoder"], getattr(torch, model.precision)
    with explained(source), quiet():
        if without_weights():
            encoder = T5EncoderModel._from_config(AutoConfig.from_pretrained(source), dtype=dtype)
        else:
            source = _fetch_text_encoder(source)
            encoder = T5EncoderModel.from_pretrained(source, dtype=dtype)
        return encoder, AutoTokenizer.from_pretrained(source)
