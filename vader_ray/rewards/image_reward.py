"""ImageReward (arXiv 2304.05977): a BLIP that reads image and prompt together, trained on human rankings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import BertTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from vader_ray.errors import UserError
from vader_ray.rewards.base import FrameReward, frozen
from vader_ray.rewards.core.linear_head import LinearHead, load_linear_head
from vader_ray.rewards.core.preprocess import CLIP_MEAN, CLIP_STD, normalise
from vader_ray.rewards.core.resizing import Resizing, centre_square
from vader_ray.rewards.core.transformers_loading import TOKENIZER_FILES, load_tokenizer, read_json
from vader_ray.weights import Source, load_strictly, read_state_dict, resolve_weights

REPOSITORY, TOKENIZER = "THUDM/ImageReward", "google-bert/bert-base-uncased"
FILES = ("ImageReward.pt", "med_config.json")
MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Mean and standard deviation of the head's output, with which the published score is normalised."""
NUM_TOKENS = 35
"""Tokens of a prompt; longer ones are cut, shorter ones padded."""
HEAD_FEATURES = 64
"""Features of one attention head of the image encoder."""
HEAD_SIZES = (768, 1024, 128, 64, 16, 1)
"""Numbers of features of the published head."""
VISION, TEXT, HEAD = "blip.visual_encoder.", "blip.text_encoder.", "mlp."
"""Beginnings of the names of weights that are loaded."""
UNUSED = ("blip.vision_proj.", "blip.text_proj.")
"""Beginnings of the names of weights of BLIP's other losses, which the score does not use."""
RENAMED = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^norm\.", "post_layernorm."),
    (r"^blocks\.(\d+)\.norm([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.qkv."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"^blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
)
"""Patterns of published names of the image encoder, with their names in transformers."""
SIZED = (
    "embeddings.position_embedding",
    "embeddings.patch_embedding.weight",
    "encoder.layers.0.mlp.fc1.weight",
)
"""Weights of the image encoder from whose shapes its sizes are read."""
TEXT_SETTINGS = (
    "hidden_size",
    "intermediate_size",
    "layer_norm_eps",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "vocab_size",
)
"""Settings that are read from ``med_config.json``."""


class ImageReward(FrameReward):
    """The mean over frames of the published score (the head's output, normalised).

    Args:
        weights: hub repository or local folder with ``ImageReward.pt`` and ``med_config.json``.
        tokenizer: hub repository or folder; by default the tokenizer in a local folder of weights, or else
            that of BERT, which the network was trained with.
    """

    unit = "ImageReward, standard deviations of its training set, about −2 to 2"
    default_weights = f"{REPOSITORY}, {TOKENIZER}"
    licence = "Apache-2.0"

    def __init__(self, *, weights: Source = REPOSITORY, tokenizer: Source | None = None) -> None:
        super().__init__()
        folder = resolve_weights(weights, *FILES)
        has_tokenizer = tokenizer is None and (folder / "tokenizer.json").is_file()
        source = str(folder) if has_tokenizer else tokenizer or TOKENIZER
        self.tokenizer = load_tokenizer(resolve_weights(source, *TOKENIZER_FILES), BertTokenizer)
        vision, text, head = load_networks(folder)
        self.vision, self.text, self.head = frozen(vision), frozen(text), frozen(head)
        self.image_size: int = self.vision.config.image_size  # type: ignore[assignment]

    def resizing(self, height: int, width: int) -> Resizing:
        """Return the centre square of frames with the short side at the network's image size."""
        return centre_square(height, width, self.image_size, "bicubic")

    def score_images(
        self, images: Float[Tensor, "n 3 height width"], prompts: Sequence[str], /
    ) -> Float[Tensor, " n"]:
        """Return the score of each image, float32 at least."""
        seen = self.vision(pixel_values=self.prepare(images).to(self.dtype)).last_hidden_state
        tokens, mask = self.tokenize(prompts)
        # Added to the attention's logits. Of a mask of 0 and 1, transformers reads the values on the host.
        padding = torch.zeros_like(mask, dtype=seen.dtype).masked_fill(mask == 0, torch.finfo(seen.dtype).min)
        read: Tensor = self.text(
            input_ids=tokens, attention_mask=padding[:, None, None], encoder_hidden_states=seen
        ).last_hidden_state
        rating: Tensor = self.head(read[:, 0])[:, 0]
        return (rating.to(torch.promote_types(rating.dtype, torch.float32)) - MEAN) / STD

    def prepare(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 3 size size"]:
        """Return the preprocessed images that the network takes."""
        return normalise(self.seen(images), CLIP_MEAN, CLIP_STD)

    def tokenize(self, prompts: Sequence[str]) -> tuple[Int[Tensor, "n tokens"], Int[Tensor, "n tokens"]]:
        """Return the tokens of each prompt, padded to one length, and 1 where they are no padding."""
        encoded = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=NUM_TOKENS, return_tensors="pt"
        )
        device = next(self.parameters()).device
        return encoded.input_ids.to(device), encoded.attention_mask.to(device)


def load_networks(folder: Path) -> tuple[BlipVisionModel, BlipTextModel, LinearHead]:
    """Load the image encoder, the text encoder and the head with every weight of the published file.

    Raises:
        UserError: a file is missing, truncated or of another network.
    """
    source = folder / FILES[0]
    state = {name: value for name, value in read_state_dict(source).items() if not name.startswith(UNUSED)}
    _check_layout(state, source)
    vision_state = {_renamed(name): value for name, value in _part(state, VISION).items()}
    vision = BlipVisionModel(_vision_config(vision_state))
    text = BlipTextModel(_text_config(folder / FILES[1], vision), add_pooling_layer=False)
    load_strictly(vision, vision_state, source)
    load_strictly(text, _part(state, TEXT), source)
    return vision, text, load_linear_head(_part(state, HEAD), source, HEAD_SIZES)


def _check_layout(state: Mapping[str, Tensor], source: Path) -> None:
    """Refuse the file of another network before networks of the published size are made for it."""
    foreign = [name for name in state if not name.startswith((VISION, TEXT, HEAD))]
    if foreign or (state and f"{VISION}pos_embed" not in state):
        raise UserError(
            f"{source} belongs to another network: its weights begin with "
            f"{', '.join(sorted(foreign or state)[:3])} instead of {VISION}, {TEXT} and {HEAD}; give "
            f"{FILES[0]} of {REPOSITORY}"
        )


def _part(state: Mapping[str, Tensor], beginning: str) -> dict[str, Tensor]:
    """Return the weights of one network by their names in it."""
    return {
        name.removeprefix(beginning): value
        for name, value in state.items()
        if name.startswith(beginning)
        and not name.endswith("position_ids")  # a buffer of old versions of transformers
    }


def _renamed(name: str) -> str:
    for pattern, successor in RENAMED:
        name, found = re.subn(pattern, successor, name)
        if found:
            break
    return name


def _vision_config(state: Mapping[str, Tensor]) -> BlipVisionConfig:
    """Return the sizes of the image encoder, from its weights; without weights those of the published one."""
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "image_size": 224}
    sizes |= {"num_attention_heads": 16, "patch_size": 16}
    shapes = [tuple(state[name].shape) if name in state else () for name in SIZED]
    if [len(shape) for shape in shapes] == [3, 4, 2]:
        (_, positions, width), (*_, patch), (inner, _) = shapes
        sizes = {
            "hidden_size": width,
            "intermediate_size": inner,
            "num_hidden_layers": len([name for name in state if name.endswith("qkv.weight")]),
            "num_attention_heads": max(1, width // HEAD_FEATURES),
            "image_size": patch * round((positions - 1) ** 0.5),
            "patch_size": patch,
        }
    return BlipVisionConfig(**sizes, layer_norm_eps=1e-6)


def _text_config(path: Path, vision: BlipVisionModel) -> BlipTextConfig:
    """Return the settings of the text encoder.

    Raises:
        UserError: the file does not state one.
    """
    found = read_json(path)
    settings = found if isinstance(found, dict) else {}
    if missing := [key for key in TEXT_SETTINGS if key not in settings]:
        raise UserError(f"{path} has no {missing[0]}; copy it from {REPOSITORY}")
    chosen = {key: settings[key] for key in TEXT_SETTINGS}
    return BlipTextConfig(**chosen, encoder_hidden_size=vision.config.hidden_size)
