"""Rewards that compare each image with its prompt: the cosine of two embeddings, times a scale."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel

from vader_ray.errors import UserError
from vader_ray.rewards.base import FrameReward, frozen
from vader_ray.rewards.core.preprocess import normalise
from vader_ray.rewards.core.resizing import Resizing, centre_square
from vader_ray.rewards.core.transformers_loading import (
    TOKENIZER_FILES,
    check_model_type,
    image_statistics,
    load_folder,
    load_tokenizer,
)
from vader_ray.weights import resolve_weights


class PromptReward(FrameReward):
    """Base class: the mean over frames of ``scale`` · cosine(image, prompt)."""

    scale: float = 1.0
    """Factor of the cosine."""

    def __init__(self) -> None:
        super().__init__()
        self._text_features: dict[str, Tensor] = {}

    def score_images(
        self, images: Float[Tensor, "n 3 height width"], prompts: Sequence[str], /
    ) -> Float[Tensor, " n"]:
        """Return the scaled cosine of each image with its prompt, float32 at least."""
        image = _direction(self.encode_images(self.prepare(images).to(self.dtype)))
        text = torch.stack([self._text_feature(prompt) for prompt in prompts])
        return self.scale * (image * text).sum(dim=-1)

    @abstractmethod
    def prepare(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 3 size size"]:
        """Return the preprocessed images that the network takes."""

    @abstractmethod
    def encode_images(self, pixels: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n features"]:
        """Return the embedding of each image; its norm has no influence."""

    @abstractmethod
    def encode_prompt(self, prompt: str, device: torch.device) -> Float[Tensor, "1 features"]:
        """Return the embedding of one prompt; its norm has no influence."""

    def _text_feature(self, prompt: str) -> Float[Tensor, " features"]:
        # One prompt at a time: in a batch the last bits would depend on the other prompts, that is, on the
        # cache.
        if prompt not in self._text_features:
            device = next(self.parameters()).device
            self._text_features[prompt] = _direction(self.encode_prompt(prompt, device))[0]
        return self._text_features[prompt]

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        """Clear the cached text features when the weights change device or dtype."""
        self._text_features = {}
        return super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]


class TransformersClipReward(PromptReward):
    """Base class: a CLIP of transformers with the preprocessing of its ``CLIPProcessor``.

    The short side is resized (bicubic), the centre cropped.
    """

    def __init__(self, folder: Path, tokenizer: str) -> None:
        super().__init__()
        self.clip = frozen(load_clip(folder))
        tokenizer_folder = resolve_weights(tokenizer, *TOKENIZER_FILES)
        self.tokenizer = load_tokenizer(tokenizer_folder)
        self.image_mean, self.image_std = image_statistics(folder)
        self.image_size: int = self.clip.config.vision_config.image_size
        self.num_tokens: int = self.clip.config.text_config.max_position_embeddings
        if (num_words := self.clip.config.text_config.vocab_size) < len(self.tokenizer):
            raise UserError(
                f"the tokenizer {tokenizer_folder} has {len(self.tokenizer)} tokens but the network "
                f"{folder} only {num_words}; give the tokenizer that it was trained with"
            )

    def resizing(self, height: int, width: int) -> Resizing:
        """Return the centre square of frames with the short side at the network's image size."""
        return centre_square(height, width, self.image_size, "bicubic", "transformers")

    def prepare(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 3 size size"]:
        """Return the preprocessed images that the network takes."""
        return normalise(self.seen(images), self.image_mean, self.image_std)

    def encode_images(self, pixels: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n features"]:
        """Return the embedding of each image; its norm has no influence."""
        features: Tensor = self.clip.visual_projection(
            self.clip.vision_model(pixel_values=pixels).pooler_output
        )
        return features

    def encode_prompt(self, prompt: str, device: torch.device) -> Float[Tensor, "1 features"]:
        """Return the embedding of one prompt; its norm has no influence."""
        features: Tensor = self.clip.text_projection(
            self.clip.text_model(self.tokenize(prompt).to(device)).pooler_output
        )
        return features

    def tokenize(self, prompt: str) -> Int[Tensor, "1 tokens"]:
        """Return the tokens of one prompt, truncated to the network's length.

        There is no padding: attention is causal, and the embedding is that of the end token.
        """
        tokens: Tensor = self.tokenizer(
            prompt, truncation=True, max_length=self.num_tokens, return_tensors="pt"
        ).input_ids
        return tokens


def load_clip(folder: Path) -> CLIPModel:
    """Load the CLIP of a folder in transformers' format, every weight of it.

    Raises:
        UserError: the folder has another architecture, or its files are missing, truncated or of another
            network.
    """
    check_model_type(folder, "clip")
    network = CLIPModel(CLIPConfig.from_pretrained(folder))
    load_folder(network, folder)
    return network


def _direction(features: Float[Tensor, "n features"]) -> Float[Tensor, "n features"]:
    """Return the features at unit length, float32 at least.

    The square of their norm overflows half precision.
    """
    return functional.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)
