"""PickScore (arXiv 2305.01569): a CLIP ViT-H-14, tuned on users' choices between two images, matches prompt and image."""

from __future__ import annotations

from vader_ray.rewards.core.clip import TransformersClipReward
from vader_ray.rewards.core.transformers_loading import TRANSFORMERS_FILES
from vader_ray.weights import Source, resolve_weights

REPOSITORY, TOKENIZER = "yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


class Reward(TransformersClipReward):
    """The mean over frames of exp(logit scale) · cosine(image, prompt), equation 1 of the paper.

    The published preprocessing (short side bicubic, centre crop) is VADER's too, so there is no choice.

    Args:
        weights: a hub repository or a local folder in transformers' format.
        tokenizer: a hub repository or folder; left out, the tokenizer in a local folder of weights, else the published one.
    """

    unit = "exp(logit scale) × cosine, −100 to 100, pictures about 20"
    default_weights = f"{REPOSITORY}, {TOKENIZER}"
    licence = "not stated"

    def __init__(self, *, weights: Source = REPOSITORY, tokenizer: Source | None = None) -> None:
        folder = resolve_weights(weights, *TRANSFORMERS_FILES)
        brings_its_own = tokenizer is None and (folder / "tokenizer.json").is_file()
        super().__init__(folder, str(folder) if brings_its_own else tokenizer or TOKENIZER)
        self.scale = float(
            self.clip.logit_scale.exp()
        )  # 100 in the published weights, whatever the precision later
