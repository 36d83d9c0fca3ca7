"""CLIPScore (arXiv 2104.08718): similarity of image and prompt in CLIP's embedding space."""

from __future__ import annotations

from vader_ray.rewards.core.clip import TransformersClipReward
from vader_ray.rewards.core.transformers_loading import TOKENIZER_FILES, TRANSFORMERS_FILES
from vader_ray.weights import Source, resolve_weights

REPOSITORY = "openai/clip-vit-large-patch14"


class CLIPScoreReward(TransformersClipReward):
    """The mean over frames of 100 · cosine(image, prompt).

    Positive scores are the CLIPScore of leaderboards. The published score clamps negative cosines to 0, where
    the gradient is 0; here there is no clamp. The paper's factor is 2.5 instead of 100. VADER's code has no
    such reward.

    Args:
        weights: hub repository or local folder in transformers' format, with its tokenizer.
    """

    unit = "100 × cosine, −100 to 100, of natural images about 15 to 35"
    default_weights = REPOSITORY
    licence = "not stated"
    scale = 100.0

    def __init__(self, *, weights: Source = REPOSITORY) -> None:
        folder = resolve_weights(weights, *TRANSFORMERS_FILES, *TOKENIZER_FILES)
        super().__init__(folder, str(folder))
