"""CLIPScore (arXiv 2104.08718): how well a CLIP finds the prompt in the image."""

from __future__ import annotations

from vader_ray.rewards.core.clip import TOKENIZER_FILES, TransformersClipReward
from vader_ray.rewards.core.transformers_loading import TRANSFORMERS_FILES
from vader_ray.weights import Source, resolve_weights

REPOSITORY = "openai/clip-vit-large-patch14"


class Reward(TransformersClipReward):
    """The mean over frames of 100 · cosine(image, prompt).

    That is the CLIPScore of leaderboards wherever it is positive. The published score clamps negative cosines to 0, which has no
    gradient, so there is no clamp here; the paper's own factor is 2.5 instead of 100. VADER has no reward of this kind.

    Args:
        weights: a hub repository or a local folder in transformers' format, with its tokenizer.
    """

    unit = "100 × cosine, −100 to 100, pictures about 15 to 35"
    default_weights = REPOSITORY
    licence = "not stated"
    scale = 100.0

    def __init__(self, *, weights: Source = REPOSITORY) -> None:
        folder = resolve_weights(weights, *TRANSFORMERS_FILES, *TOKENIZER_FILES)
        super().__init__(folder, str(folder))
