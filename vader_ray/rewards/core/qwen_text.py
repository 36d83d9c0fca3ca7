"""Text of the Qwen families as tokens: chat template, placeholders of frames, special tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from vader_ray.errors import UserError

TOKENIZER_FILE = "tokenizer.json"
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
"""Turn that the chat templates of Qwen2-VL and Qwen2.5-VL put first."""
USER, ASSISTANT = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
START, END = "<|vision_start|>", "<|vision_end|>"
IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"


class QwenTokenizer:
    """A tokenizer of the family.

    Args:
        folder: with ``tokenizer.json``.
        added: special tokens that a reward adds, in their published order.

    Raises:
        UserError: the file is missing, damaged or of another family.
    """

    def __init__(self, folder: Path, added: Sequence[str] = ()) -> None:
        self.path = folder / TOKENIZER_FILE
        if not self.path.is_file():
            raise UserError(
                f"{folder} has no {TOKENIZER_FILE}; copy it from the weights' hub repository there"
            )
        try:
            self._tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(self.path))
        except Exception as error:  # the parser of the file raises no narrower class
            raise UserError(
                f"{self.path} cannot be read ({type(error).__name__}); download it again"
            ) from error
        self._tokenizer.add_tokens(list(added), special_tokens=True)
        self._encoded: dict[str, list[int]] = {}
        for token in ("<|im_start|>", "<|im_end|>", START, END, IMAGE, VIDEO):
            self.index(token)

    def __len__(self) -> int:
        return len(self._tokenizer)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, in which special tokens are recognised; each text is computed once."""
        if text not in self._encoded:
            self._encoded[text] = self._tokenizer.encode(text, add_special_tokens=False)
        return self._encoded[text]

    def index(self, token: str) -> int:
        """Return the index of a text that must be one token.

        Raises:
            UserError: it is none or several.
        """
        tokens = self.encode(token)
        if len(tokens) != 1:
            raise UserError(
                f"{token!r} is {len(tokens)} tokens of {self.path} and must be one; give the tokenizer of "
                "these weights, or another text"
            )
        return tokens[0]


def image_turn(grid: tuple[int, int, int], merge: int) -> list[str | tuple[str, int]]:
    """Return the placeholder of an image: texts, and a token with its number of repetitions."""
    return [START, (IMAGE, grid[1] * grid[2] // merge**2), END]


def video_turn(
    grid: tuple[int, int, int], merge: int, seconds: Sequence[float] | None
) -> list[str | tuple[str, int]]:
    """Return the placeholder of a video: texts, and a token with its number of repetitions.

    Args:
        grid: patches in time, height and width.
        merge: patches along the side of a token.
        seconds: time of each pair of frames, which Qwen3-VL writes before it; None in the other families.
    """
    per_pair = grid[1] * grid[2] // merge**2
    if seconds is None:
        return [START, (VIDEO, grid[0] * per_pair), END]
    parts: list[str | tuple[str, int]] = []
    for second in seconds:
        parts += [f"<{second:.1f} seconds>{START}", (VIDEO, per_pair), END]
    return parts


def tokenize_parts(
    tokenizer: QwenTokenizer, parts: Sequence[str | tuple[str, int]]
) -> tuple[list[int], list[bool]]:
    """Return the tokens of texts and placeholders, and which of them are placeholders.

    Texts next to each other are one text, as the tokenizer may join them.
    """
    ids, is_visual, text = list[int](), list[bool](), ""
    for part in [*parts, ("", 0)]:
        if isinstance(part, str):
            text += part
            continue
        token, count = part
        new = tokenizer.encode(text)
        repeated = [tokenizer.index(token)] * count if count else []
        ids += new + repeated
        is_visual += [False] * len(new) + [True] * count
        text = ""
    return ids, is_visual
