"""Rewards that match each image with its prompt: the cosine of two embeddings, times a scale."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from vader_ray.config import ConfigError
from vader_ray.rewards.base import FrameReward, frozen
from vader_ray.rewards.core.preprocess import crop, crop_region, normalise
from vader_ray.rewards.core.transformers_loading import check_model_type, image_statistics, load_folder
from vader_ray.weights import resolve_weights

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


class PromptReward(FrameReward):
    """The mean over frames of `scale` · cosine(image, prompt)."""

    scale: float = 1.0

    def __init__(self) -> None:
        super().__init__()
        self._text_features: dict[str, Tensor] = {}

    def score_images(
        self, images: Float[Tensor, "n 3 height width"], prompts: Sequence[str], /
    ) -> Float[Tensor, " n"]:
        """The scaled cosine of each image with its prompt, at least float32."""
        image = _direction(self.encode_images(self.prepare(images).to(self.dtype)))
        text = torch.stack([self._text_feature(prompt) for prompt in prompts])
        return self.scale * (image * text).sum(dim=-1)

    @abstractmethod
    def prepare(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 3 size size"]:
        """What the network sees."""

    @abstractmethod
    def encode_images(self, pixels: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n features"]:
        """The embedding of each image, of any length."""

    @abstractmethod
    def encode_prompt(self, prompt: str, device: torch.device) -> Float[Tensor, "1 features"]:
        """The embedding of one prompt, of any length."""

    def _text_feature(self, prompt: str) -> Float[Tensor, " features"]:
        # One prompt at a time: in a batch the last bits would depend on the neighbours, hence on what was cached before.
        if prompt not in self._text_features:
            device = next(self.parameters()).device
            self._text_features[prompt] = _direction(self.encode_prompt(prompt, device))[0]
        return self._text_features[prompt]

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        """Forget features of another device or dtype when the weights move."""
        self._text_features = {}
        return super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]


class TransformersClipReward(PromptReward):
    """A whole CLIP of transformers with the preprocessing of its ``CLIPProcessor``: short side bicubic, centre crop."""

    def __init__(self, folder: Path, tokenizer: str) -> None:
        super().__init__()
        self.clip = frozen(load_clip(folder))
        tokenizer_folder = resolve_weights(tokenizer, *TOKENIZER_FILES)
        self.tokenizer = load_tokenizer(tokenizer_folder)
        self.image_mean, self.image_std = image_statistics(folder)
        self.image_size: int = self.clip.config.vision_config.image_size
        self.num_tokens: int = self.clip.config.text_config.max_position_embeddings
        if (num_words := self.clip.config.text_config.vocab_size) < len(self.tokenizer):
            raise ConfigError(
                f"the tokenizer {tokenizer_folder} knows {len(self.tokenizer)} tokens but the network {folder} only "
                f"{num_words}; give the tokenizer that it was trained with"
            )

    def region(self, height: int, width: int) -> tuple[slice, slice]:
        """The centre square."""
        return crop_region(height, width, self.image_size, "bicubic", "transformers")

    def prepare(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 3 size size"]:
        """What the network sees."""
        return normalise(
            crop(images, self.image_size, "bicubic", "transformers"), self.image_mean, self.image_std
        )

    def encode_images(self, pixels: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n features"]:
        """The embedding of each image, of any length."""
        features: Tensor = self.clip.visual_projection(
            self.clip.vision_model(pixel_values=pixels).pooler_output
        )
        return features

    def encode_prompt(self, prompt: str, device: torch.device) -> Float[Tensor, "1 features"]:
        """The embedding of one prompt, of any length."""
        features: Tensor = self.clip.text_projection(
            self.clip.text_model(self.tokenize(prompt).to(device)).pooler_output
        )
        return features

    def tokenize(self, prompt: str) -> Int[Tensor, "1 tokens"]:
        """The tokens of one prompt, cut to what the network takes; unpadded, as later tokens never reach the end token."""
        tokens: Tensor = self.tokenizer(
            prompt, truncation=True, max_length=self.num_tokens, return_tensors="pt"
        ).input_ids
        return tokens


def load_clip(folder: Path) -> CLIPModel:
    """The network of a folder in transformers' format, every weight loaded.

    Raises:
        ConfigError: the folder holds another architecture, or its files are missing, cut short or of another network.
    """
    check_model_type(folder, "clip")
    network = CLIPModel(CLIPConfig.from_pretrained(folder))
    load_folder(network, folder)
    return network


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer of a folder."""
    if not (folder / "tokenizer.json").is_file():
        raise ConfigError(
            f"{folder} holds no tokenizer.json; copy {' and '.join(TOKENIZER_FILES)} of its hub repository there"
        )
    try:
        return CLIPTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder}/tokenizer.json cannot be read ({type(error).__name__}); get it again"
        ) from error


def _direction(features: Float[Tensor, "n features"]) -> Float[Tensor, "n features"]:
    """The features at unit length, at least float32: half precision has no room for the square of their length."""
    return functional.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)
