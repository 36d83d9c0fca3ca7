"""VQAScore (arXiv 2404.01291): the probability that a model affirms that the prompt is shown."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from vader_ray.rewards.core.judge import JudgeReward
from vader_ray.weights import Source

WEIGHTS = "Qwen/Qwen2.5-VL-7B-Instruct"


class VQAScoreReward(JudgeReward):
    """The probability of the next token "Yes" among all tokens, after a question about the prompt.

    A preset of ``vlm_judge``, whose difference of logits is the better reward: a probability near 0 or 1 has
    almost no gradient. Frames per second and pixels are those of t2v_metrics 3.1 for Qwen2.5-VL. The
    published code generates one token; one forward pass gives the same probability. The exact words of the
    published question are unverified.

    Args:
        weights: as in ``vlm_judge``.
        video_fps: frames per second of the videos.
        fps: frames per second to look at.
        min_pixels: least number of pixels of a resized frame.
        max_pixels: largest number of pixels of a resized frame.
        checkpointing: recompute layers in the backward pass, which needs less memory.
    """

    unit = "probability, 0 to 1"
    default_weights = WEIGHTS
    licence = "Apache-2.0"

    def __init__(
        self,
        *,
        weights: Source = WEIGHTS,
        video_fps: Annotated[float, Field(gt=0)] = 16.0,
        fps: Annotated[float, Field(gt=0)] = 8.0,
        min_pixels: Annotated[int, Field(ge=28 * 28)] = 128 * 28 * 28,
        max_pixels: Annotated[int, Field(ge=28 * 28)] = 360 * 420,
        checkpointing: bool = True,
    ) -> None:
        super().__init__(
            weights=weights,
            questions='Does this figure show "{prompt}"? Please answer Yes or No.',
            answers=["Yes", "No"],
            score="probability",
            video_fps=video_fps,
            fps=fps,
            num_frames=None,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            checkpointing=checkpointing,
        )
