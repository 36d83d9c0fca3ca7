"""Read VideoCrafter2's published checkpoint, one Lightning file with all networks and the schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from jaxtyping import Float, Int
from open_clip.transformer import Transformer
from torch import Tensor, nn

from vader_ray.config import ModelConfig
from vader_ray.errors import UserError
from vader_ray.models.core.image_autoencoder import level_widths, meta_autoencoder
from vader_ray.models.videocrafter2.scheduler import DynamicRescaleDDIMScheduler
from vader_ray.models.videocrafter2.unet import Architecture, UNet
from vader_ray.weights import load_strictly, read_state_dict, resolve_weights, without_weights

FILE = "model.ckpt"
DENOISER, TEXT_ENCODER, AUTOENCODER = (
    "model.diffusion_model.",
    "cond_stage_model.model.",
    "first_stage_model.",
)
"""Prefixes of the names of the three networks' weights."""
SCALING_FACTOR = 0.18215
PUBLISHED = Architecture(
    in_channels=4,
    out_channels=4,
    channels=320,
    multipliers=(1, 2, 4, 4),
    attention=(True, True, True, False),
    num_res_blocks=2,
    head_size=64,
    context_size=1024,
)
"""Sizes of the denoiser of ``VideoCrafter/VideoCrafter2``."""
_ALPHAS = ("alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod")
_RECIPROCALS = ("log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod")
_POSTERIOR = (
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)
SCHEDULE = {"betas", *_ALPHAS, *_RECIPROCALS, *_POSTERIOR, "scale_arr"}
"""Names of the tables of the noise schedule. The scheduler computes them; ``betas`` and ``scale_arr``, which
determine the others, are compared with it."""


@dataclass(frozen=True, slots=True)
class Networks:
    """The three networks of a checkpoint."""

    unet: UNet
    text_encoder: TextEncoder
    vae: AutoencoderKL


class TextEncoder(nn.Module):
    """The text tower of an OpenCLIP network up to its penultimate layer; one feature vector per token."""

    def __init__(self, vocabulary: int, tokens: int, width: int, layers: int, features: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.empty(tokens, width))
        # 64 features per head, as in every OpenCLIP text encoder
        self.transformer = Transformer(width, layers, heads=width // 64)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, features))
        self.logit_scale = nn.Parameter(torch.empty(()))

    @classmethod
    def read(cls, weights: Mapping[str, Tensor]) -> TextEncoder:
        """Return a network on the meta device with the sizes of a checkpoint."""
        vocabulary, layers = (
            len(weights["token_embedding.weight"]),
            sum(name.endswith(".ln_1.weight") for name in weights),
        )
        tokens, width = weights["positional_embedding"].shape
        with torch.device("meta"):
            return cls(vocabulary, tokens, width, layers, weights["text_projection"].shape[1])

    def drop_unused(self) -> None:
        """Delete the last layer and the projection, which only matching with images needs."""
        del self.transformer.resblocks[-1], self.text_projection, self.logit_scale

    @property
    def dtype(self) -> torch.dtype:
        return self.positional_embedding.dtype

    @property
    def device(self) -> torch.device:
        return self.positional_embedding.device

    def forward(self, tokens: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens width"]:
        """Return the features of each token; attention is causal."""
        x = self.token_embedding(tokens) + self.positional_embedding
        mask = torch.full(2 * tokens.shape[1:], -torch.inf, dtype=x.dtype, device=x.device).triu(1)
        for block in self.transformer.resblocks:
            x = block(x, attn_mask=mask)
        features: Tensor = self.ln_final(x)
        return features


def fetch(model: ModelConfig) -> Path:
    """Return the checkpoint's file; that of a hub id is downloaded first.

    Raises:
        UserError: it does not exist or cannot be downloaded.
    """
    checkpoint = _path(model)
    if not checkpoint.is_file():
        raise UserError(
            f"model.weights: {checkpoint} does not exist; give a {FILE}, its folder, or "
            "VideoCrafter/VideoCrafter2"
        )
    return checkpoint


def _path(model: ModelConfig) -> Path:
    found = resolve_weights(model.weights, FILE)
    return found if found.is_file() else found / FILE


def meta_networks(model: ModelConfig) -> Networks:
    """Return the three networks on the meta device.

    They have the sizes of a local checkpoint, or else the published sizes.
    """
    with torch.device("meta"):
        checkpoint = _path(model)
        if checkpoint.is_file():
            return read(checkpoint)
        text_encoder = TextEncoder(vocabulary=49408, tokens=77, width=1024, layers=24, features=1024)
        text_encoder.drop_unused()
        return Networks(
            UNet(PUBLISHED),
            text_encoder,
            meta_autoencoder((128, 256, 512, 512), 2, 4, SCALING_FACTOR),
        )


def read(checkpoint: Path) -> Networks:
    """Read the three networks, in the precision of the file.

    Raises:
        UserError: the file is damaged, or its weights are not exactly those of the three networks.
    """
    return assemble(read_state_dict(checkpoint), checkpoint)


def assemble(state: Mapping[str, Tensor], checkpoint: Path) -> Networks:
    """Return the three networks with the weights of a state dict; the tensors are used and not copied.

    Args:
        state: all weights of the checkpoint.
        checkpoint: its file, for messages.

    Raises:
        UserError: the weights are not exactly those of the three networks.
    """
    parts = {
        prefix: {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        for prefix in (DENOISER, TEXT_ENCODER, AUTOENCODER)
    }
    schedule = {name: value for name, value in state.items() if not name.startswith(tuple(parts))}
    if not without_weights():
        _check_schedule(schedule, checkpoint)
    try:
        with torch.device("meta"):
            unet = UNet(Architecture.read(parts[DENOISER]))
        text_encoder, vae = TextEncoder.read(parts[TEXT_ENCODER]), _autoencoder(parts[AUTOENCODER])
    except KeyError as error:
        raise UserError(
            f"{checkpoint} is not a checkpoint of VideoCrafter2: it has no weight {error}"
        ) from None
    load_strictly(unet, parts[DENOISER], checkpoint)
    load_strictly(text_encoder, parts[TEXT_ENCODER], checkpoint)
    load_strictly(vae, _converted(parts[AUTOENCODER], vae, checkpoint), checkpoint)
    text_encoder.drop_unused()
    return Networks(unet, text_encoder, vae)


def _check_schedule(schedule: Mapping[str, Tensor], checkpoint: Path) -> None:
    """Refuse a model that was trained with another noise schedule, and weights that no network would load."""
    if foreign := sorted(schedule.keys() - SCHEDULE):
        raise UserError(
            f"{checkpoint} belongs to another network: {len(foreign)} unexpected weights, such as "
            f"{foreign[0]}"
        )
    ours = DynamicRescaleDDIMScheduler()
    for name, table in (("betas", ours.betas), ("scale_arr", ours.scales)):
        # scale_arr has more entries than are used
        theirs = schedule[name][: len(table)] if name in schedule else table
        if theirs.shape != table.shape or not torch.allclose(theirs.float(), table, rtol=1e-4, atol=0):
            raise UserError(
                f"{checkpoint} was trained with another noise schedule ({name} differs), which is not "
                "VideoCrafter2's"
            )


def _autoencoder(weights: Mapping[str, Tensor]) -> AutoencoderKL:
    """Return an autoencoder on the meta device, with the sizes of weights in latent diffusion's layout."""
    widths = level_widths(weights, "encoder.down.{}.block.0.conv1.bias")
    num_blocks = sum(name.startswith("encoder.down.0.") and name.endswith("conv1.bias") for name in weights)
    return meta_autoencoder(widths, num_blocks, len(weights["post_quant_conv.bias"]), SCALING_FACTOR)


def _converted(weights: Mapping[str, Tensor], vae: AutoencoderKL, checkpoint: Path) -> dict[str, Tensor]:
    """Return the weights by diffusers' names."""
    converted: dict[str, Tensor] = convert_ldm_vae_checkpoint(dict(weights), vae.config)
    if len(converted) != len(weights):  # diffusers leaves out unknown names
        count = len(weights) - len(converted)
        raise UserError(
            f"{checkpoint} belongs to another network: its autoencoder has {count} unexpected weights"
        )
    return converted
