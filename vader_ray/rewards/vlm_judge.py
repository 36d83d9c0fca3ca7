"""Any Qwen2.5-VL or Qwen3-VL that answers a question about the video."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from vader_ray.rewards.core.judge import AnswerScore, JudgeReward, Questions
from vader_ray.weights import Source

WEIGHTS = "Qwen/Qwen2.5-VL-7B-Instruct"


class VLMJudgeReward(JudgeReward):
    """The logit of one answer minus that of the other (arXiv 2601.04153), or the expected mark.

    The network reads the frames and a question, and the score is read from the logits of the next token: one
    forward pass, no generated text. A difference of logits is not bounded and does not saturate; set a
    target. With ``score: expectation`` and marks as answers it is their mean by their probabilities, between
    the least and the largest mark. Several questions are read in one pass, none of which attends to another;
    their scores are averaged.

    The chat template and positions are those of the checkpoint's family: Qwen2.5-VL with a system turn and
    positions in seconds, Qwen3-VL with the time of each pair of frames as text and no system turn (the
    absence of the latter is unverified). Frames are evenly spaced and resized bicubically with antialiasing,
    without the published rounding to 8 bits. It can be deceived by pictures that look to it like the
    answer: hold out another reward.

    Deviation from float32 on a tiny network with random weights (tests): bfloat16 below 0.04, float16 below
    0.008.

    Args:
        weights: hub repository or folder in transformers' format with ``config.json``, ``tokenizer.json`` and
            ``model.safetensors``, in one file or several with an index.
        question: with ``{prompt}``, or several of them.
        answers: the answers, each one token.
        score: ``difference``, ``probability`` or ``expectation`` of the answers.
        answer_start: what the answer begins with, such as ``"Score (1-5): "``.
        video_fps: frames per second of the videos.
        fps: frames per second to look at; an even number of frames, at least four.
        num_frames: number of frames to look at, instead of ``fps``.
        min_pixels: least number of pixels of a resized frame.
        max_pixels: largest number of pixels of a resized frame.
        checkpointing: recompute layers in the backward pass, which needs less memory.
    """

    unit = "difference of logits, probability, or mark, by the option score"
    default_weights = WEIGHTS
    licence = "Apache-2.0 (7B); of other sizes see their card"

    def __init__(  # noqa: PLR0913
        self,
        *,
        weights: Source = WEIGHTS,
        question: Questions = 'Does this video show "{prompt}"? Please answer Yes or No.',
        answers: Annotated[list[str], Field(min_length=2)] | None = None,
        score: AnswerScore = "difference",
        answer_start: str = "",
        video_fps: Annotated[float, Field(gt=0)] = 16.0,
        fps: Annotated[float, Field(gt=0)] = 2.0,
        num_frames: Annotated[int, Field(ge=1)] | None = None,
        min_pixels: Annotated[int, Field(ge=28 * 28)] = 128 * 28 * 28,
        max_pixels: Annotated[int, Field(ge=28 * 28)] = 256 * 28 * 28,
        checkpointing: bool = True,
    ) -> None:
        marks = ["1", "2", "3", "4", "5"]
        super().__init__(
            weights=weights,
            questions=question,
            answers=answers or (marks if score == "expectation" else ["Yes", "No"]),
            score=score,
            answer_start=answer_start,
            video_fps=video_fps,
            fps=fps,
            num_frames=num_frames,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            checkpointing=checkpointing,
        )
