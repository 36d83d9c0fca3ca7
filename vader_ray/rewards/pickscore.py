"""PickScore (arXiv 2305.01569): a CLIP ViT-H-14, fine-tuned on users' choices between two images."""

from __future__ import annotations

from vader_ray.rewards.core.clip import TransformersClipReward
from vader_ray.rewards.core.transformers_loading import TRANSFORMERS_FILES
from vader_ray.weights import Source, resolve_weights

REPOSITORY, TOKENIZER = "yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


class PickScoreReward(TransformersClipReward):
    """The mean over frames of exp(logit scale) · cosine(image, prompt), equation 1 of the paper.

    There is no option ``preprocessing``: VADER's code preprocesses as published (short side bicubic, centre
    crop).

    Args:
        weights: hub repository or local folder in transformers' format.
        tokenizer: hub repository or folder; by default the tokenizer in a local folder of weights, or else
            the published one.
    """

    unit = "exp(logit scale) × cosine, −100 to 100, of natural images about 20"
    default_weights = f"{REPOSITORY}, {TOKENIZER}"
    licence = "not stated"

    def __init__(self, *, weights: Source = REPOSITORY, tokenizer: Source | None = None) -> None:
        folder = resolve_weights(weights, *TRANSFORMERS_FILES)
        has_tokenizer = tokenizer is None and (folder / "tokenizer.json").is_file()
        super().__init__(folder, str(folder) if has_tokenizer else tokenizer or TOKENIZER)
        self.scale = float(self.clip.logit_scale.exp())  # before a cast to half precision; 100 as published
