"""V-JEPA 2 (arXiv 2506.09985): how well masked parts of a video are predicted from the visible ones."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional
from transformers import VJEPA2Config, VJEPA2Model

from vader_ray.errors import UserError
from vader_ray.rewards.base import NetworkReward, frozen
from vader_ray.rewards.core.resizing import Resizing
from vader_ray.rewards.core.transformers_loading import load_folder
from vader_ray.rewards.core.video import obtain_folder, read_processor
from vader_ray.types import Frames, Granularity, Scores
from vader_ray.weights import Source

WEIGHTS = "facebook/vjepa2-vitl-fpc64-256"
FILES = ("config.json", "video_preprocessor_config.json", "model.safetensors")
BLOCKS = ((8, 0.15), (2, 0.7))
"""Number of blocks of a mask and the share of the frame's area that each covers: short-range and long-range
masks."""
ASPECT = (0.75, 1.5)
"""Range of height / width of a block."""


class VJEPAReward(NetworkReward):
    """Minus the masked prediction loss of V-JEPA.

    It is the mean L1 distance of predicted and true features of the masked tokens.

    The encoder takes the visible tokens and the predictor predicts the features of the masked ones. The
    targets are the encoder's features of the whole clip, normalised per token (layer norm without weights).
    This is V-JEPA's training loss (equation 1) with one encoder in both branches, as published checkpoints
    contain only one. An uninformed prediction scores about −0.8 (minus the mean of |x| over a normal x), a
    perfect one 0. As in transformers the predictor uses its mask token of index 1.

    Masks are unions of blocks over all frames, drawn from (``seed``, prompt) alone: a video has the same
    masks in every batch, on every worker and after a resume, and videos of one prompt can be compared. All
    frames of the clip are used (the reference trains on 16); their number must be a multiple of the tubelet
    size (2).

    Deviation from float32 on a tiny network with random weights (tests): bfloat16 below 0.002, float16 below
    0.0005.

    Args:
        weights: folder or hub repository in transformers' format (``config.json``, processor,
            ``model.safetensors``).
        num_masks: pairs of a short-range and a long-range mask per query. More masks cost more and reduce the
            variance.
        seed: of the masks.
        context: ``visible`` encodes the visible tokens alone, as in V-JEPA's training; ``whole`` selects them
            from the encoding of the whole clip, as ``VJEPA2Model.forward`` of transformers does, where they
            have attended to masked tokens.
        target_gradient: whether the gradient also flows through the targets. If so, it is the gradient of the
            score and agrees with finite differences. If not, it is that of V-JEPA's training (targets are
            constant), which needs about half the memory, but is not the direction of steepest ascent.
    """

    granularity: Granularity = "clip"
    unit = "−L1 of normalised features, 0 perfect, about −0.8 uninformed"
    default_weights = WEIGHTS
    licence = "MIT"

    def __init__(
        self,
        *,
        weights: Source = WEIGHTS,
        num_masks: Annotated[int, Field(ge=1)] = 1,
        seed: int = 0,
        context: Literal["visible", "whole"] = "visible",
        target_gradient: bool = True,
    ) -> None:
        super().__init__()
        folder = obtain_folder(weights, "vjepa2", *FILES)
        self.network = frozen(load_network(folder))
        self.processor = read_processor(folder)
        self.grid: int = self.processor.size // self.network.config.patch_size  # type: ignore[operator]
        self.tubelet: int = self.network.config.tubelet_size
        if self.processor.size != self.network.config.crop_size or self.grid < 2:
            raise UserError(
                f"{folder}: frames of {self.processor.size} pixels do not fit a network for "
                f"{self.network.config.crop_size} in patches of {self.network.config.patch_size}, at least "
                "2 × 2; give the processor of these weights"
            )
        self.num_masks, self.seed, self.context, self.target_gradient = (
            num_masks,
            seed,
            context,
            target_gradient,
        )

    def resizing(self, height: int, width: int) -> Resizing:
        """Return that of the checkpoint's processor."""
        return self.processor.resizing(height, width)

    def score(self, frames: Frames, prompts: Sequence[str], /) -> Scores:
        """Return one score per video; each video has its own masks.

        Raises:
            UserError: the number of frames is not a multiple of the tubelet size.
        """
        if frames.shape[1] % self.tubelet:
            raise UserError(
                f"vjepa takes {self.tubelet} frames at a time and cannot divide {frames.shape[1]}; set "
                f"sampling.num_frames to a multiple of {self.tubelet}, or the reward's frames to a rule "
                "that gives such a number"
            )
        return torch.stack(
            [self._score_video(video, prompt) for video, prompt in zip(frames, prompts, strict=True)]
        )

    def masks(
        self, prompt: str, num_frames: int
    ) -> list[tuple[Int[Tensor, " visible"], Int[Tensor, " hidden"]]]:
        """Return the indices of the visible and of the masked tokens of each mask, ascending."""
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {prompt}".encode()))
        device = next(self.parameters()).device
        pairs = []
        for num_blocks, area in BLOCKS * self.num_masks:
            hidden = (
                draw_mask(self.grid, num_blocks, area, generator).flatten().repeat(num_frames // self.tubelet)
            )
            pairs.append(((~hidden).nonzero()[:, 0].to(device), hidden.nonzero()[:, 0].to(device)))
        return pairs

    def _score_video(self, video: Float[Tensor, "frames 3 height width"], prompt: str) -> Float[Tensor, ""]:
        patches = self.network.encoder.embeddings(self.processor(video[None]).to(self.dtype))
        needs_graph = self.target_gradient or self.context == "whole"
        with torch.set_grad_enabled(torch.is_grad_enabled() and needs_graph):
            whole = self._encode(patches)
        targets = self._targets(whole if self.target_gradient else whole.detach())
        losses = []
        for visible, hidden in self.masks(prompt, len(video)):
            context = (
                self._encode(patches[:, visible], visible) if self.context == "visible" else whole[:, visible]
            )
            losses.append((self._predict(context, visible, hidden) - targets[:, hidden]).abs().mean())
        return -torch.stack(losses).mean()

    def _encode(
        self, patches: Float[Tensor, "1 tokens features"], positions: Int[Tensor, " tokens"] | None = None
    ) -> Float[Tensor, "1 tokens features"]:
        """Encode the patches at these positions, by default all.

        `VJEPA2Encoder.forward` takes no positions.
        """
        for layer in self.network.encoder.layer:
            patches = layer(patches, None if positions is None else positions[None])[0]
        encoded: Tensor = self.network.encoder.layernorm(patches)
        return encoded

    def _targets(self, whole: Float[Tensor, "1 tokens features"]) -> Float[Tensor, "1 tokens features"]:
        wide = whole.to(torch.promote_types(whole.dtype, torch.float32))
        return functional.layer_norm(wide, wide.shape[-1:])

    def _predict(
        self,
        context: Float[Tensor, "1 visible features"],
        visible: Int[Tensor, " visible"],
        hidden: Int[Tensor, " hidden"],
    ) -> Float[Tensor, "1 hidden features"]:
        # The predictor selects its context from all tokens by index and does not read the masked ones.
        tokens = context.new_zeros(1, len(visible) + len(hidden), context.shape[-1]).index_copy(
            1, visible, context
        )
        prediction: Tensor = self.network.predictor(tokens, [visible[None]], [hidden[None]]).last_hidden_state
        return prediction


def draw_mask(
    size: int, num_blocks: int, area: float, generator: torch.Generator
) -> Bool[Tensor, "size size"]:
    """Draw a mask, the union of equal blocks at random positions of a ``size`` × ``size`` grid.

    As in the reference, the blocks of a mask share their height and width, and a mask that covers the whole
    grid is drawn again. A block has at least one cell, for grids that are smaller than those of V-JEPA's
    training.
    """
    while True:
        aspect = ASPECT[0] + (ASPECT[1] - ASPECT[0]) * float(
            torch.rand((), generator=generator, dtype=torch.float64)
        )
        height, width = (
            min(max(round(math.sqrt(int(size * size * area) * ratio)), 1), size)
            for ratio in (aspect, 1 / aspect)
        )
        hidden = torch.zeros(size, size, dtype=torch.bool)
        for _ in range(num_blocks):
            top, left = (
                int(torch.randint(size - side + 1, (), generator=generator)) for side in (height, width)
            )
            hidden[top : top + height, left : left + width] = True
        if not hidden.all():
            return hidden


def load_network(folder: Path) -> VJEPA2Model:
    """Load encoder and predictor with every weight of the file."""
    network = VJEPA2Model(VJEPA2Config.from_pretrained(folder))
    load_folder(network, folder)
    return network
