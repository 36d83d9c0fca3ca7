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

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import vision_utils

from vader_ray.rewards.core.preprocess import CLIP_MEAN, CLIP_STD, normalise, resize

HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, slots=True)
class VisionFormat:
    """How a family cuts frames into tokens."""

    patch: int
    """Side of a patch in pixels."""
    merge: int
    """Patches along the side of a token."""
    tubelet: int
    """Frames of a patch."""
    mean: tuple[float, ...]
    """Mean of each colour channel."""
    std: tuple[float, ...]
    """Standard deviation of each colour channel."""

    @property
    def factor(self) -> int:
        """Side of a token in pixels."""
        return self.patch * self.merge


def vision_format(config: Any) -> VisionFormat:
    """Return the format of a network, from its transformers config."""
    vision = config.vision_config
    mean, std = (HALF, HALF) if config.model_type == "qwen3_vl" else (CLIP_MEAN, CLIP_STD)
    return VisionFormat(vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size, mean, std)


def smart_size(height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Return the published size of a resized frame.

    Both sides are multiples of ``factor``, and their product is between the limits if the multiples allow it.
    """
    rows, columns = (max(factor, round(side / factor) * factor) for side in (height, width))
    if rows * columns > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows, columns = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    elif rows * columns < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows, columns = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return rows, columns


def evenly_spaced(num_frames: int, num_wanted: int) -> list[int]:
    """Return the indices of evenly spaced frames, with the first and the last."""
    indices: list[int] = torch.linspace(0, num_frames - 1, num_wanted, device="cpu").round().long().tolist()
    return indices


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
        checkpointing: whether the layers are recomputed in the backward pass.
    """

    model: Any

    def __init__(self, model: Any, *, checkpointing: bool = True) -> None:
        super().__init__()
        self.model = model
        self.format = vision_format(model.config)
        if checkpointing:
            _recompute(model.visual.blocks)
            _recompute(model.language_model.layers)

    def encode(
        self, frames: Float[Tensor, "frames 3 height width"], *, min_pixels: int, max_pixels: int
    ) -> VisualTokens:
        """Return the tokens of an image (one frame) or a clip, differentiable in the frames in [0, 1].

        Args:
            frames: the last one is repeated up to a multiple of the tubelet.
            min_pixels: least number of pixels of a resized frame.
            max_pixels: largest number of pixels of a resized frame.
        """
        style = self.format
        height, width = smart_size(
            *frames.shape[-2:], factor=style.factor, min_pixels=min_pixels, max_pixels=max_pixels
        )
        pixels = normalise(resize(frames, height, width, "bicubic"), style.mean, style.std)
        patches, grid = patchify(pixels, style)
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


def patchify(
    pixels: Float[Tensor, "frames 3 height width"], style: VisionFormat
) -> tuple[Float[Tensor, "patches values"], tuple[int, int, int]]:
    """Cut frames into patches; return them with their numbers in time, height and width.

    Patches are ordered by time, row and column of their token, then row and column inside the token; their
    values by channel, time, row and column.
    """
    missing = -len(pixels) % style.tubelet
    pixels = torch.cat([pixels, pixels[-1:].expand(missing, -1, -1, -1)]) if missing else pixels
    grid = (
        len(pixels) // style.tubelet,
        pixels.shape[-2] // style.patch,
        pixels.shape[-1] // style.patch,
    )
    rows, columns = grid[1] // style.merge, grid[2] // style.merge
    inside = (style.merge, style.patch)
    cut = pixels.reshape(grid[0], style.tubelet, 3, rows, *inside, columns, *inside)
    ordered = cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return ordered.reshape(math.prod(grid), -1), grid


def patch_geometry(visual: Any, grid: tuple[int, int, int], device: torch.device) -> dict[str, Tensor]:
    """Return what a vision tower derives from the numbers of patches: positions, segments and windows.

    It is computed on the CPU by transformers' own functions, as the tower would compute it, and so without
    waiting for the device.
    """
    numbers = torch.tensor([grid], device="cpu")
    merge: int = visual.spatial_merge_size
    positions = vision_utils.get_vision_position_ids(numbers, merge)
    found = {"position_ids": positions.to(device), "cu_seqlens": vision_utils.get_vision_cu_seqlens(numbers)}
    if hasattr(visual, "window_size"):
        index, borders = vision_utils.get_vision_window_index(
            numbers, merge, visual.window_size, visual.patch_size
        )
        found |= {"window_index": index.to(device), "cu_window_seqlens": borders}
    if hasattr(visual, "num_grid_per_side"):
        indices, weights = vision_utils.get_vision_interpolation_indices_and_weights(
            numbers,
            visual.num_grid_per_side,
            visual.interpolation_mode,
            visual.interpolation_align_corners,
            merge,
        )
        found |= {"interp_indices": indices.to(device), "interp_weights": weights.to(device)}
    return found


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


def only_position(ids: Sequence[int], token: int) -> int | None:
    """Return where a token stands that occurs exactly once, or None."""
    found = [index for index, other in enumerate(ids) if other == token]
    return found[0] if len(found) == 1 else None
