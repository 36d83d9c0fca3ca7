"""MPS (arXiv 2405.14705), multi-dimensional preference score: a CLIP whose image tokens attend to the prompt.

They attend to those tokens of the prompt that resemble a condition, a list of words for what is to be judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional
from transformers import CLIPConfig

from vader_ray.errors import UserError
from vader_ray.rewards.base import FrameReward, frozen
from vader_ray.rewards.core.conditioned_clip import ConditionedCLIP
from vader_ray.rewards.core.preprocess import CLIP_MEAN, CLIP_STD, normalise
from vader_ray.rewards.core.resizing import Resizing, centre_square, whole
from vader_ray.rewards.core.transformers_loading import TOKENIZER_FILES, check_model_type, load_tokenizer
from vader_ray.weights import Source, load_strictly, read_state_dict, resolve_url, resolve_weights

URL = "https://pai-aigc-photog.oss-cn-hangzhou.aliyuncs.com/easyanimate/Third_Party/MPS_overall.pth"
"""The authors' weights as plain tensors, converted by VideoX-Fun; MD5 1491cbbbd20565747fe07e7572e2ac56."""
CLIP = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
FILES = ("config.json", *TOKENIZER_FILES)
OVERALL = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, "
    "instance, texture, quantity, attributes, position, number, location, word, things."
)
"""The authors' condition for an overall judgement."""


class MPSReward(FrameReward):
    """The mean over frames of exp(logit scale) · cosine(prompt, image), the image seen under the condition.

    Args:
        weights: local copy of ``MPS_overall.pth``, plain tensors; by default VideoX-Fun's copy is downloaded.
            The authors' own file is a pickled module and is refused.
        clip: hub repository or folder with the settings and the tokenizer of the CLIP that was trained.
        condition: words for what is to be judged.
        threshold: tokens of the prompt whose similarity to the condition, as a share of the largest, is above
            it are attended to. The authors' evaluation has 0.3; their training and VideoX-Fun have 0.01.
        preprocessing: ``published`` crops the centre (short side bicubic); ``videox_fun`` resizes to a square
            (bicubic).
    """

    unit = "exp(logit scale) × cosine, −100 to 100"
    default_weights = f"Kwai-Kolors/MPS, {CLIP}"
    licence = "MIT"

    def __init__(
        self,
        *,
        weights: Source | None = None,
        clip: Source = CLIP,
        condition: str = OVERALL,
        threshold: Annotated[float, Field(ge=0, lt=1)] = 0.3,
        preprocessing: Literal["published", "videox_fun"] = "published",
    ) -> None:
        super().__init__()
        folder = resolve_weights(clip, *FILES)
        path = resolve_weights(weights) if weights else resolve_url(URL)
        self.network = frozen(load_network(path, folder))
        self.tokenizer = load_tokenizer(folder)
        self.image_size: int = self.network.model.config.vision_config.image_size
        self.num_tokens: int = self.network.model.config.text_config.max_position_embeddings
        self.condition, self.threshold, self.preprocessing = condition, threshold, preprocessing
        scale = self.network.model.logit_scale.exp()  # before a cast to half precision; 100 as published
        self.scale = 100.0 if scale.is_meta else float(scale)
        self._prompts: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    def resizing(self, height: int, width: int) -> Resizing:
        """Return the centre square of frames with the short side at the network's image size, or a square
        with ``preprocessing=videox_fun``."""
        if self.preprocessing == "videox_fun":
            return whole(self.image_size, self.image_size, "bicubic", clamp=False)
        return centre_square(height, width, self.image_size, "bicubic", "transformers")

    def score_images(
        self, images: Float[Tensor, "n 3 height width"], prompts: Sequence[str], /
    ) -> Float[Tensor, " n"]:
        """Return the scaled cosine of each image with its prompt, float32 at least."""
        encoded = [self._encoded(prompt) for prompt in prompts]
        tokens, ends, kept = (torch.cat(parts) for parts in zip(*encoded, strict=True))
        seen = self.network.encode_images(self.prepare(images).to(self.dtype), tokens, kept)
        wide = torch.promote_types(seen.dtype, torch.float32)
        return self.scale * functional.cosine_similarity(ends.to(wide), seen.to(wide), dim=-1)

    def prepare(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 3 size size"]:
        """Return the preprocessed images that the network takes."""
        return normalise(self.seen(images), CLIP_MEAN, CLIP_STD)

    def _encoded(self, prompt: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return the token features, the feature of the end and the kept tokens of a prompt, one row each.

        They do not depend on the frames.
        """
        if prompt not in self._prompts:
            with torch.no_grad():
                tokens, end = self.network.encode_text(self._tokenize(prompt))
                condition, _ = self.network.encode_text(self._tokenize(self.condition))
                self._prompts[prompt] = tokens, end, kept_tokens(tokens, condition, self.threshold)
        return self._prompts[prompt]

    def _tokenize(self, text: str) -> Int[Tensor, "1 tokens"]:
        tokens: Tensor = self.tokenizer(
            text, padding="max_length", truncation=True, max_length=self.num_tokens, return_tensors="pt"
        ).input_ids
        return tokens.to(next(self.parameters()).device)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        """Clear the cached prompts when the weights change device or dtype."""
        self._prompts = {}
        return super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]


def kept_tokens(
    text: Float[Tensor, "n tokens features"],
    condition: Float[Tensor, "n words features"],
    threshold: float,
) -> Bool[Tensor, "n tokens"]:
    """Return which tokens of each prompt are attended to.

    A token's similarity is its largest inner product with a token of the condition, as a share of the largest
    of the prompt. The authors divide by the largest of the batch, so that their scores depend on the batch;
    with one prompt at a time they are the same.
    """
    similarity = (text @ condition.transpose(1, 2)).amax(dim=2)
    return similarity / similarity.amax(dim=1, keepdim=True) > threshold


def load_network(path: Path, folder: Path) -> ConditionedCLIP:
    """Load CLIP and the network behind it with every weight of the file.

    Raises:
        UserError: the file is missing, truncated, a pickled module or of another network.
    """
    check_model_type(folder, "clip")
    state = {
        name: value for name, value in read_state_dict(path).items() if not name.endswith("position_ids")
    }
    if foreign := [name for name in state if not name.startswith(("model.", "cross_model."))]:
        raise UserError(
            f"{path} belongs to another network: its weights begin with {', '.join(sorted(foreign)[:3])} "
            "instead of model. and cross_model.; give MPS_overall.pth"
        )
    network = ConditionedCLIP(CLIPConfig.from_pretrained(folder))
    load_strictly(network, state, path)
    return network
