"""What trades memory against time in a denoiser: blocks that are recomputed or compiled, and a cache for the prefix."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import CacheMixin, FirstBlockCacheConfig
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from vader_ray.config import ActivationCheckpointing

_LISTS = (
    "blocks",
    "transformer_blocks",
    "single_transformer_blocks",
    "refiner_blocks",
    "resnets",
    "attentions",
    "temp_convs",
    "temp_attentions",
    "motion_modules",
)
"""What diffusers' denoisers call their lists of blocks; those of UNets lie within coarser ones."""
_ATTENTION = [
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
]


def blocks(denoiser: nn.Module) -> list[nn.Module]:
    """The residual and transformer blocks of a denoiser of diffusers, none within another."""
    found = list[nn.Module]()
    for name, child in denoiser.named_children():
        if name in _LISTS and isinstance(child, nn.ModuleList):
            found.extend(child)
        else:
            found.extend(blocks(child))
    return found


def apply_activation_checkpointing(parts: Iterable[nn.Module], kind: ActivationCheckpointing) -> None:
    """Keep only the input of each part for the backward pass; with ``attention`` also what its attention gave. Exact."""
    if kind != "none":
        for part in parts:
            part.forward = _recomputed(part.forward, kind)  # type: ignore[method-assign]


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
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **keep, **kwargs)

    return run


def compile_blocks(parts: Iterable[nn.Module], backend: str = "inductor") -> None:
    """Compile each part by itself: parts of one class share the result, so it takes seconds and not minutes."""
    for part in parts:
        part.forward = torch.compile(part.forward, backend=backend)  # type: ignore[method-assign]


def check_cache(rule: str, denoisers: Sequence[nn.Module]) -> None:
    """Refuse a cache that a denoiser cannot have.

    Raises:
        ValueError: diffusers caches no features of its class.
    """
    for denoiser in denoisers:
        if rule != "none" and not isinstance(denoiser, CacheMixin):
            raise ValueError(
                f"sampling.prefix_cache={rule}: diffusers caches no features of {type(denoiser).__name__}, only of "
                "transformers; set sampling.prefix_cache=none"
            )


@contextmanager
def first_block_cache(rule: str, denoisers: Sequence[nn.Module]) -> Iterator[None]:
    """Within, a denoising step whose first block says little new takes over what the other blocks said before."""
    if rule == "none":
        yield
        return
    threshold = float(rule.partition(":")[2])
    for denoiser in denoisers:
        denoiser.enable_cache(FirstBlockCacheConfig(threshold))  # type: ignore[operator]
    try:
        yield
    finally:
        for denoiser in denoisers:
            denoiser.disable_cache()  # type: ignore[operator]
