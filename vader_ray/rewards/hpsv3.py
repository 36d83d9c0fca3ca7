"""HPSv3 (arXiv 2508.03789): a Qwen2-VL-7B with a head that predicts human preference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from vader_ray.rewards.base import FrameReward, frozen
from vader_ray.rewards.core.qwen import QwenNetwork, WideHead
from vader_ray.rewards.core.qwen_checkpoint import SETTINGS, load_model, present_names, read_head, read_text
from vader_ray.rewards.core.qwen_reward import special_token_states
from vader_ray.rewards.core.qwen_text import QwenTokenizer, image_turn
from vader_ray.rewards.core.resizing import Resizing
from vader_ray.weights import Source, read_state_dict, resolve_weights

REPOSITORY, BASE = "MizzenAI/HPSv3", "Qwen/Qwen2-VL-7B-Instruct"
FILE = "HPSv3.safetensors"
SPECIAL = "<|Reward|>"
TEMPLATE = Path(__file__).parent / "core" / "templates" / "hpsv3.txt"
"""Text of the wheel hpsv3 1.0.0, MIT (``hpsv3.LICENSE`` beside it)."""
PIXELS = 256 * 28 * 28


class HPSv3Reward(FrameReward):
    """The mean over frames of the predicted mean preference μ.

    The frame, a published instruction and the prompt are read by the network, and the head takes the hidden
    state at the token ``<|Reward|>``. Preprocessing is that of the package's path for PIL images (bicubic
    with antialiasing, frames of 480 × 832 to 336 × 588), without its rounding to 8 bits; the package's own
    tensor processor (bilinear) gives other scores. Positions are sequential, as in training. The second
    output, the logarithm of the spread, is not used. It was trained on images: alone it freezes motion.

    The head computes in float32, as published, and the rest in the recipe's precision (published: bfloat16).
    About 7.8 billion weights: 14.4 GiB in bfloat16; a frame of 480 × 832 is 252 of about 850 tokens, so score
    few frames (``frames: stride:16``). The size of the file's table of embeddings and the base network's
    licence are unverified; any table with at least the tokens of the tokenizer loads.

    Deviation from float32 on a tiny network with random weights (tests): bfloat16 below 0.01, float16 below
    0.001.

    Args:
        weights: hub repository or folder with ``HPSv3.safetensors``, or such a file.
        base: hub repository or folder with ``config.json`` and ``tokenizer.json`` of the base network; by
            default the folder of the weights, if they are there, or else the published one.
        pixels: of a resized frame, at most; published 256 tokens of 28 × 28.
        checkpointing: recompute layers in the backward pass, which needs less memory.
    """

    unit = "mean preference μ, about −5 to 15, of good images 8 to 12"
    default_weights = f"{REPOSITORY}, {BASE}"
    licence = "MIT; base network Apache-2.0"

    def __init__(
        self,
        *,
        weights: Source = REPOSITORY,
        base: Source | None = None,
        pixels: Annotated[int, Field(ge=28 * 28)] = PIXELS,
        checkpointing: bool = True,
    ) -> None:
        super().__init__()
        found = resolve_weights(weights, FILE)
        own = found if found.is_dir() else found.parent
        has_base = base is None and all((own / name).is_file() for name in SETTINGS)
        folder = own if has_base else resolve_weights(base or BASE, *SETTINGS)
        self.tokenizer = QwenTokenizer(folder, [SPECIAL])
        source = found / FILE if found.is_dir() else found
        state = present_names(read_state_dict(source))
        model = load_model(folder, state, source, "qwen2_vl", min_tokens=len(self.tokenizer))
        self.network = frozen(
            QwenNetwork(model, min_pixels=pixels, max_pixels=pixels, checkpointing=checkpointing)
        )
        self.head = frozen(ranking_head(self.network.model.config.text_config.hidden_size))
        read_head(state, self.head, source)
        self.template = read_text(TEMPLATE)

    def resizing(self, height: int, width: int) -> Resizing:
        """Return the resizing to the published size, all of which is used."""
        return self.network.resizing(height, width)

    def score_images(
        self, images: Float[Tensor, "n 3 height width"], prompts: Sequence[str], /
    ) -> Float[Tensor, " n"]:
        """Return μ of each image."""
        return torch.stack(
            [self._score(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
        )

    def _score(self, image: Float[Tensor, "3 height width"], prompt: str) -> Float[Tensor, ""]:
        visual = self.network.encode(image[None])
        text = self.template.replace("{text_prompt}", prompt)
        turn = [*image_turn(visual.grid, self.network.format.merge), text]
        hidden = special_token_states(self.network, self.tokenizer, visual, turn, [SPECIAL])
        outputs: Tensor = self.head(hidden)
        return outputs[0, 0]


def ranking_head(width: int) -> WideHead:
    """Return the head with the published layers; its weights are numbered 0, 3 and 5."""
    return WideHead(
        nn.Linear(width, 1024),
        nn.ReLU(),
        nn.Dropout(0.05),
        nn.Linear(1024, 16),
        nn.ReLU(),
        nn.Linear(16, 2),
    )
