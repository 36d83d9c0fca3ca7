"""Scores read at special tokens, and the frames that published scorers of videos look at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from vader_ray.errors import UserError
from vader_ray.rewards.core.qwen import QwenNetwork, VisualTokens, sequential_positions
from vader_ray.rewards.core.qwen_text import ASSISTANT, SYSTEM, USER, QwenTokenizer, tokenize_parts

MIN_FRAMES, FRAME_FACTOR = 4, 2


def special_token_states(
    network: QwenNetwork,
    tokenizer: QwenTokenizer,
    visual: VisualTokens,
    turn: Sequence[str | tuple[str, int]],
    special: Sequence[str],
) -> Float[Tensor, "special width"]:
    """Return the hidden states of one user turn at each of the special tokens.

    Args:
        network: with sequential positions, as in training.
        tokenizer: that knows the special tokens.
        visual: tokens of the frames.
        turn: placeholder of the frames, then the text.
        special: tokens in the order of the result.

    Raises:
        UserError: a special token does not stand in the text exactly once, as a prompt contains it.
    """
    ids, is_visual = tokenize_parts(tokenizer, [SYSTEM, USER, *turn, ASSISTANT])
    where = [only_position(ids, tokenizer.index(token)) for token in special]
    if None in where:
        raise UserError(
            f"the text with the prompt must have each of {', '.join(special)} once; remove such tokens "
            "from the prompt"
        )
    device = visual.tokens.device
    hidden = network.read(
        torch.tensor(ids, device=device),
        torch.tensor(is_visual, device=device),
        visual,
        positions=sequential_positions(len(ids), device),
    )
    return hidden[torch.tensor(where, device=device)]


def sampled_frames(
    num_frames: int, *, video_fps: float, fps: float, num_wanted: int | None = None
) -> list[int]:
    """Return the frames of a video that the published scorers look at, with the first and the last.

    They are evenly spaced. Without a number they are ``fps`` per second, an even number of at least 4, at
    most all.
    """
    if num_wanted is None:
        exact = max(num_frames / video_fps * fps, MIN_FRAMES)
        num_wanted = round(exact / FRAME_FACTOR) * FRAME_FACTOR
    places = torch.linspace(0, num_frames - 1, min(num_wanted, num_frames), device="cpu")
    indices: list[int] = places.round().long().tolist()
    return indices


def only_position(ids: Sequence[int], token: int) -> int | None:
    """Return where a token stands that occurs exactly once, or None."""
    found = [index for index, other in enumerate(ids) if other == token]
    return found[0] if len(found) == 1 else None
