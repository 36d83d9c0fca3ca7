"""Trade memory against time: activation checkpointing and compiled blocks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts, noop_context_fn

from vader_ray.config import ActivationCheckpointing

ResultT = TypeVar("ResultT")
_LISTS = (
    "blocks",
    "transformer_blocks",
    "single_transformer_blocks",
    "temporal_transformer_blocks",
    "text_transformer_blocks",
    "visual_transformer_blocks",
    "video_text_transformer_blocks",
    "audio_text_transformer_blocks",
    "vace_blocks",
    "refiner_blocks",
    "resnets",
    "attentions",
    "temp_convs",
    "temp_attentions",
    "motion_modules",
)
"""Names of the lists of blocks in diffusers' denoisers; a UNet nests them in coarser blocks."""
_DECODER_LISTS = (*_LISTS, "upsamplers")
"""Names of the lists of blocks in diffusers' image and video decoders."""
_ATTENTION = [
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
]


def blocks(denoiser: nn.Module) -> list[nn.Module]:
    """Return the residual and transformer blocks of a diffusers denoiser; none contains another."""
    return _items_of(denoiser, _LISTS)


def decoder_blocks(decoder: nn.Module) -> list[nn.Module]:
    """Return the residual blocks, attention and upsampling of a diffusers decoder; none contains another."""
    return _items_of(decoder, _DECODER_LISTS)


def _items_of(network: nn.Module, lists: Sequence[str]) -> list[nn.Module]:
    found = list[nn.Module]()
    for name, child in network.named_children():
        if name in lists and isinstance(child, nn.ModuleList):
            found.extend(each for each in child if each is not None)
        else:
            found.extend(_items_of(child, lists))
    return found


def apply_activation_checkpointing(parts: Iterable[nn.Module], kind: ActivationCheckpointing) -> None:
    """Recompute each part in the backward pass instead of keeping its activations.

    Only the part's input is kept, with ``attention`` also the output of attention.

    Exact; costs one more forward pass of the parts.
    """
    if kind != "none":
        for part in parts:
            part.forward = _recomputed(part.forward, kind)  # type: ignore[method-assign]


@contextmanager
def recomputed(parts: Sequence[nn.Module]) -> Iterator[None]:
    """Recompute each part in the backward pass of what is computed inside a ``with`` block."""
    before = [vars(part).get("forward") for part in parts]
    apply_activation_checkpointing(parts, "block")
    try:
        yield
    finally:
        for part, forward in zip(parts, before, strict=True):
            if forward is None:
                del part.forward
            else:
                part.forward = forward


def _recomputed(forward: Callable[..., Any], kind: ActivationCheckpointing) -> Callable[..., Any]:
    keep: dict[str, Any] = (
        {"context_fn": functools.partial(create_selective_checkpoint_contexts, _ATTENTION)}
        if kind == "attention"
        else {}
    )

    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return recompute(forward, *args, **keep, **kwargs)

    return run


def recompute(
    function: Callable[..., ResultT],
    *args: Any,
    context_fn: Callable[[], Any] = noop_context_fn,
    **kwargs: Any,
) -> ResultT:
    """Call a function and keep only its arguments for the backward pass, which calls it again.

    Inside another checkpoint, torch frees tensors that are arguments themselves, but not those in lists or
    dicts, such as caches; so each tensor becomes an argument.
    """
    leaves, structure = tree_flatten((args, kwargs))

    def call(*leaves: Any) -> ResultT:
        args, kwargs = tree_unflatten(leaves, structure)
        return function(*args, **kwargs)

    result: ResultT = checkpoint(
        call, *leaves, use_reentrant=False, preserve_rng_state=False, context_fn=context_fn
    )
    return result


def compile_blocks(parts: Iterable[nn.Module]) -> None:
    """Compile each part by itself.

    Parts of one class share the compiled code, so compilation takes seconds and not minutes.

    diffusers' own ``compile_repeated_blocks`` compiles the blocks of its transformers, but not of its 3D
    UNets.
    """
    for part in parts:
        part.forward = torch.compile(part.forward)  # type: ignore[method-assign]
