"""A vision-language model that answers questions about a video, scored by its next-token logits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from vader_ray.errors import UserError
from vader_ray.rewards.base import NetworkReward, frozen
from vader_ray.rewards.core.qwen import QwenNetwork, VisualTokens
from vader_ray.rewards.core.qwen_checkpoint import (
    load_model,
    obtain_checkpoint,
    present_names,
    read_checkpoint,
)
from vader_ray.rewards.core.qwen_reward import sampled_frames
from vader_ray.rewards.core.qwen_text import (
    ASSISTANT,
    SYSTEM,
    USER,
    QwenTokenizer,
    tokenize_parts,
    video_turn,
)
from vader_ray.rewards.core.resizing import Resizing
from vader_ray.types import Frames, Granularity, Scores
from vader_ray.weights import Source

FAMILIES = ("qwen2_5_vl", "qwen3_vl")
AnswerScore: TypeAlias = Literal["difference", "probability", "expectation"]
"""``difference``: logit of the first answer minus that of the second. ``probability``: of the first answer
among all tokens (VQAScore). ``expectation``: mean of answers that are numbers, by their probabilities among
themselves."""
Questions: TypeAlias = Annotated[list[str], Field(min_length=1)] | str


class JudgeReward(NetworkReward):
    """Base class: the mean over questions of a score of the next token; `VLMJudgeReward` describes it."""

    granularity: Granularity = "clip"

    def __init__(  # noqa: PLR0913
        self,
        *,
        weights: Source,
        questions: Questions,
        answers: Sequence[str],
        score: AnswerScore,
        answer_start: str = "",
        video_fps: float,
        fps: float,
        num_frames: int | None,
        min_pixels: int,
        max_pixels: int,
        checkpointing: bool,
    ) -> None:
        super().__init__()
        self.questions = [questions] if isinstance(questions, str) else list(questions)
        self.answer_start, self.kind = answer_start, score
        self.values = _check_answers(answers, score)
        if min_pixels > max_pixels:
            raise UserError(f"min_pixels={min_pixels} is larger than max_pixels={max_pixels}; swap them")
        folder = obtain_checkpoint(weights)
        self.tokenizer = QwenTokenizer(folder)
        self.answers = [self.tokenizer.index(answer) for answer in answers]
        state = present_names(read_checkpoint(folder))
        model = load_model(folder, state, folder, *FAMILIES, min_tokens=len(self.tokenizer))
        self.network = frozen(
            QwenNetwork(model, min_pixels=min_pixels, max_pixels=max_pixels, checkpointing=checkpointing)
        )
        self.is_timed = self.network.model.config.model_type == "qwen3_vl"
        self.rows = nn.Parameter(self._output_rows(state, folder), requires_grad=False)
        self.video_fps, self.fps, self.num_frames = video_fps, fps, num_frames

    def resizing(self, height: int, width: int) -> Resizing:
        """Return the resizing to the published size, all of which is used."""
        return self.network.resizing(height, width)

    def score(self, frames: Frames, prompts: Sequence[str], /) -> Scores:
        """Return one score per video."""
        return torch.stack(
            [self._score_video(video, prompt) for video, prompt in zip(frames, prompts, strict=True)]
        )

    def _score_video(self, video: Float[Tensor, "frames 3 height width"], prompt: str) -> Float[Tensor, ""]:
        indices = sampled_frames(
            len(video), video_fps=self.video_fps, fps=self.fps, num_wanted=self.num_frames
        )
        visual = self.network.encode(video[indices])
        hidden = self._last_states(visual, indices, len(video), prompt)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logits = functional.linear(hidden.to(wide), self.rows.to(wide))
        return self._from_logits(logits).mean()

    def _from_logits(self, logits: Float[Tensor, "questions rows"]) -> Float[Tensor, " questions"]:
        if self.kind == "difference":
            return logits[:, 0] - logits[:, 1]
        if self.kind == "probability":
            return logits.softmax(dim=1)[:, self.answers[0]]
        return logits.softmax(dim=1) @ logits.new_tensor(self.values)

    def _last_states(
        self, visual: VisualTokens, indices: list[int], num_frames: int, prompt: str
    ) -> Float[Tensor, "questions width"]:
        """Return the state that predicts the answer of each question.

        The frames are read once: behind them stand all questions, none of which attends to another, each with
        the positions that it has alone.
        """
        shared, is_visual = tokenize_parts(self.tokenizer, self._opening(visual, indices))
        branches = [
            self.tokenizer.encode(question.replace("{prompt}", prompt) + ASSISTANT + self.answer_start)
            for question in self.questions
        ]
        device = visual.tokens.device
        ids = torch.tensor([*shared, *chain(*branches)], device="cpu")
        lengths = [len(branch) for branch in branches]
        hidden = self.network.read(
            ids.to(device),
            torch.tensor(is_visual + [False] * sum(lengths), device="cpu").to(device),
            visual,
            positions=self._positions(ids, is_visual, lengths, visual.grid, len(indices) / num_frames).to(
                device
            ),
            mask=branch_mask(len(shared), lengths, device) if len(branches) > 1 else None,
        )
        ends = torch.tensor(lengths, device=device).cumsum(dim=0) + len(shared) - 1
        return hidden[ends]

    def _opening(self, visual: VisualTokens, indices: list[int]) -> list[str | tuple[str, int]]:
        merge, tubelet = self.network.format.merge, self.network.format.tubelet
        if not self.is_timed:
            return [SYSTEM, USER, *video_turn(visual.grid, merge, None)]
        padded = indices + indices[-1:] * (-len(indices) % tubelet)
        firsts, lasts = padded[::tubelet], padded[tubelet - 1 :: tubelet]
        seconds = [
            (first / self.video_fps + last / self.video_fps) / 2
            for first, last in zip(firsts, lasts, strict=True)
        ]
        return [USER, *video_turn(visual.grid, merge, seconds)]

    def _positions(
        self,
        ids: Int[Tensor, " length"],
        is_visual: list[bool],
        lengths: list[int],
        grid: tuple[int, int, int],
        share: float,
    ) -> Int[Tensor, "3 length"]:
        """Return the positions in time, height and width, by the rule of the network's family."""
        shared = len(is_visual)
        longest = shared + max(lengths)
        kinds = torch.zeros(1, longest, dtype=torch.int, device="cpu")
        kinds[0, :shared] = 2 * torch.tensor(is_visual, device="cpu")
        timing: dict[str, Any] = {}
        if not self.is_timed:
            timing["second_per_grid_ts"] = [self.network.format.tubelet / (share * self.video_fps)]
        # Positions of text are consecutive and those of a shorter question the first of a longer one's.
        positions, _ = self.network.model.get_rope_index(
            ids[:1].expand(longest)[None],
            kinds,
            video_grid_thw=torch.tensor([grid], device="cpu"),
            **timing,
        )
        tails = [positions[:, 0, shared : shared + length] for length in lengths]
        return torch.cat([positions[:, 0, :shared], *tails], dim=1)

    def _output_rows(self, state: dict[str, Tensor], folder: Path) -> Float[Tensor, "rows width"]:
        """Return the rows of the output matrix that the score needs: those of the answers, or all."""
        table = state.get("lm_head.weight", state.get("language_model.embed_tokens.weight"))
        if table is None:  # on the meta device
            table = torch.empty_like(self.network.model.language_model.embed_tokens.weight)
        if table.shape[1] != self.network.model.config.text_config.hidden_size:
            raise UserError(f"{folder} has an lm_head for another width; give the files of one checkpoint")
        return table if self.kind == "probability" else table[self.answers].clone()


def branch_mask(shared: int, lengths: Sequence[int], device: torch.device) -> Bool[Tensor, "length length"]:
    """Return which tokens (columns) each token (row) attends to: earlier ones that are shared or its own."""
    branch = torch.cat(
        [
            torch.zeros(shared, dtype=torch.long, device=device),
            *(torch.full((length,), place, device=device) for place, length in enumerate(lengths, 1)),
        ]
    )
    same = (branch[None] == branch[:, None]) | (branch[None] == 0)
    return same.tril()


def _check_answers(answers: Sequence[str], score: AnswerScore) -> list[float]:
    """Return the numbers that the answers of an expectation stand for."""
    if len(answers) < 2 or (score == "difference" and len(answers) != 2):
        wanted = "two answers" if score == "difference" else "at least two answers"
        raise UserError(f"answers: {list(answers)} with score={score}; give {wanted}")
    if score != "expectation":
        return []
    try:
        return [float(answer) for answer in answers]
    except ValueError:
        raise UserError(
            f"answers: {list(answers)} with score=expectation; give numbers, such as '1' to '5'"
        ) from None
