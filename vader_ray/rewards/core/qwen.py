"""Differentiable front of the rewards on Qwen2-VL, Qwen2.5-VL and Qwen3-VL: frames to hidden states.

Published scorers prepare frames by processors that take images or files, so no gradient reaches the pixels.
Here frames are resized (bicubic, antialiased), cut into patches by reshaping, encoded by the vision tower and
scattered into the embeddings of the text, which the language model reads. Only one thing differs from the
published preprocessing: the resized frame is not rounded to 8 bits.

The layers of both towers are recomputed in the backward pass, so only their inputs stay in memory.
transformers checkpoints layers in training mode only, in which the networks of rewards never are.

One video is read at a time, so no score depends on the others of its batch, and no token is padding. The text
stands behind the frames and depends on them: of a prompt only its tokens can be computed once, not its hidden
states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vader_ray.rewards.core.preprocess import normalise
from vader_ray.rewards.core.qwen_vision import patch_geometry, patchify, smart_size, vision_format
from vader_ray.rewards.core.resizing import Resizing, whole


@dataclass(frozen=True, slots=True)
class VisualTokens:
    """An image or a clip as the language model reads it."""

    tokens: Float[Tensor, "tokens width"]
    """Merged patches, ordered by time, row and column."""
    deepstack: tuple[Float[Tensor, "tokens width"], ...]
    """Features that Qwen3-VL adds to its first language layers; empty in the other families."""
    grid: tuple[int, int, int]
    """Patches in time, height and width."""


class QwenNetwork(nn.Module):
    """A vision tower and a language model.

    Args:
        model: ``Qwen2VLModel``, ``Qwen2_5_VLModel`` or ``Qwen3VLModel`` of transformers.
        min_pixels: least number of pixels of a resized frame.
        max_pixels: largest number of pixels of a resized frame.
        checkpointing: whether the layers are recomputed in the backward pass.
    """

    model: Any

    def __init__(self, model: Any, *, min_pixels: int, max_pixels: int, checkpointing: bool) -> None:
        super().__init__()
        self.model = model
        self.format = vision_format(model.config)
        self.min_pixels, self.max_pixels = min_pixels, max_pixels
        if checkpointing:
            _recompute(model.visual.blocks)
            _recompute(model.language_model.layers)

    def resizing(self, height: int, width: int) -> Resizing:
        """Return the resizing of frames of this size to the published one, all of which is used."""
        limits = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        return whole(*smart_size(height, width, factor=self.format.factor, **limits), "bicubic")

    def encode(self, frames: Float[Tensor, "frames 3 height width"]) -> VisualTokens:
        """Return the tokens of an image (one frame) or a clip, differentiable in the frames in [0, 1].

        Args:
            frames: the last one is repeated up to a multiple of the tubelet.
        """
        height, width = frames.shape[-2:]
        seen = self.resizing(height, width).seen(frames)
        patches, grid = patchify(normalise(seen, self.format.mean, self.format.std), self.format)
        visual = self.model.visual
        features = visual(
            patches.to(visual.patch_embed.proj.weight.dtype),
            grid_thw=torch.tensor([grid], device="cpu"),
            **patch_geometry(visual, grid, frames.device),
        )
        # `last_hidden_state` is the state before the merger.
        return VisualTokens(features.pooler_output, tuple(features.get("deepstack_features") or ()), grid)

    def read(
        self,
        ids: Int[Tensor, " length"],
        is_visual: Bool[Tensor, " length"],
        visual: VisualTokens,
        *,
        positions: Int[Tensor, "3 length"],
        mask: Bool[Tensor, "length length"] | None = None,
    ) -> Float[Tensor, "length width"]:
        """Return the hidden states after the final norm.

        Args:
            ids: tokens of the text, with placeholders for the visual tokens.
            is_visual: where the placeholders are.
            visual: tokens to put there.
            positions: of the rotary embedding in time, height and width.
            mask: which tokens (columns) each token (row) attends to; by default all before it, and itself.
        """
        language = self.model.language_model
        embeddings = language.embed_tokens(ids)[None]
        embeddings = embeddings.masked_scatter(
            is_visual[None, :, None].expand_as(embeddings), visual.tokens.to(embeddings.dtype)
        )
        options: dict[str, Any] = {}
        if visual.deepstack:
            options = {
                "visual_pos_masks": is_visual[None],
                "deepstack_visual_embeds": list(visual.deepstack),
            }
        hidden: Tensor = language(
            inputs_embeds=embeddings,
            position_ids=positions[:, None],
            attention_mask=None if mask is None else mask[None, None],
            use_cache=False,
            **options,
        ).last_hidden_state
        return hidden[0]


def sequential_positions(length: int, device: torch.device) -> Int[Tensor, "3 length"]:
    """Return the positions 0, 1, 2, … in time, height and width.

    HPSv3 and VideoReward were trained with them: transformers 4.45 filled them in when embeddings were
    given, whereas its later versions compute positions in space and time.
    """
    return torch.arange(length, device=device).expand(3, -1)


class WideHead(nn.Sequential):
    """A head whose weights stay in float32 at least, also where the network is in half precision."""

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Any:
        def widened(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if not moved.is_floating_point():
                return moved
            return tensor.to(moved.device, torch.promote_types(moved.dtype, torch.float32))

        return super()._apply(widened, *args, **kwargs)  # type: ignore[no-untyped-call]

    def forward(self, hidden: Float[Tensor, "n width"]) -> Float[Tensor, "n outputs"]:  # type: ignore[override]
        """Return the outputs for hidden states of any precision."""
        weight = next(self.parameters())
        outputs: Tensor = super().forward(hidden.to(weight.dtype))  # type: ignore[no-untyped-call]
        return outputs


def _recompute(layers: Iterable[nn.Module]) -> None:
    for layer in layers:
        layer.forward = partial(_checkpointed, layer.forward)


def _checkpointed(forward: Callable[..., Tensor], hidden: Tensor, **options: Any) -> Tensor:
    if not (torch.is_grad_enabled() and hidden.requires_grad):
        return forward(hidden, **options)
    result: Tensor = checkpoint(forward, hidden, use_reentrant=False, preserve_rng_state=False, **options)
    return result
