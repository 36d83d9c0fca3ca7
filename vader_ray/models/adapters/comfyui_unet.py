"""Names of layers in ComfyUI's UNets, which are those of Stable Diffusion's authors.

ComfyUI numbers the blocks of all levels together (``comfy/ldm/modules/diffusionmodules/openaimodel.py``): an
input block has a residual block ``0`` and an attention ``1``, and what Stable Video Diffusion adds in time
is in the ``time_stack`` of both. ``comfy/utils.py`` (``unet_to_diffusers``) gives the same numbers. ComfyUI
has no motion modules of AnimateDiff.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from vader_ray.errors import UserError

_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
_DOWNSAMPLER = re.compile(r"down_blocks\.(\d+)\.downsamplers\.0\.conv")
_RESIDUAL = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_OUTER = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def name_of(layer: str, layers: Iterable[str]) -> str:
    """Return the name of a layer of diffusers' UNet in ComfyUI's network.

    Args:
        layer: its name in diffusers.
        layers: names of all layers of the adapter, from which the number of residual blocks of a level follows.

    Raises:
        UserError: ComfyUI's network has no such layer.
    """
    per_level = 1 + max((int(found[4]) for each in layers if (found := _down(each))), default=1)
    name = _OUTER.get(layer) or _in_block(layer, per_level)
    if name is None:
        raise UserError(
            f"ComfyUI's network has no layer {layer}, so it cannot load the whole adapter; choose --format "
            "diffusers or peft, or train without it (adapter.target_modules)"
        )
    return name


def _down(layer: str) -> re.Match[str] | None:
    found = _BLOCK.fullmatch(layer)
    return found if found and found[1] == "down" else None


def _in_block(layer: str, per_level: int) -> str | None:
    if found := _BLOCK.fullmatch(layer):
        level, index = int(found[2]), int(found[4])
        number = level * (per_level + 1) + index
        block = f"input_blocks.{number + 1}" if found[1] == "down" else f"output_blocks.{number}"
        place, inner = (0, _residual(found[5])) if found[3] == "resnets" else (1, _attention(found[5]))
        return inner and f"{block}.{place}.{inner}"
    if found := _MIDDLE.fullmatch(layer):
        index = int(found[2])
        place, inner = (
            (2 * index, _residual(found[3])) if found[1] == "resnets" else (1, _attention(found[3]))
        )
        return inner and f"middle_block.{place}.{inner}"
    if found := _DOWNSAMPLER.fullmatch(layer):
        return f"input_blocks.{(int(found[1]) + 1) * (per_level + 1)}.0.op"
    return None


def _residual(inner: str) -> str | None:
    part, _, last = inner.rpartition(".")
    prefix = {"": "", "spatial_res_block": "", "temporal_res_block": "time_stack."}.get(part)
    return None if prefix is None or last not in _RESIDUAL else prefix + _RESIDUAL[last]


def _attention(inner: str) -> str | None:
    if inner.startswith("temporal_transformer_blocks."):
        return f"time_stack.{inner.removeprefix('temporal_transformer_blocks.')}"
    if inner.startswith("time_pos_embed."):
        return inner.replace("linear_1", "0").replace("linear_2", "2")
    return inner if inner.startswith(("transformer_blocks.", "proj_in", "proj_out")) else None
