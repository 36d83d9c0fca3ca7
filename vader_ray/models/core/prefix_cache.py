"""Reuse of features between the denoising steps before the first gradient step: faster, and not exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from diffusers import CacheMixin, FirstBlockCacheConfig
from torch import nn

from vader_ray.errors import UserError
from vader_ray.models.core.loop_hooks import replace_attribute


def deep_blocks(denoiser: nn.Module) -> list[nn.Module]:
    """Return the blocks of a diffusers UNet below its first level; an empty list for other denoisers."""
    if not hasattr(denoiser, "down_blocks"):
        return []
    down, up = denoiser.down_blocks, denoiser.up_blocks
    assert isinstance(down, nn.ModuleList)
    assert isinstance(up, nn.ModuleList)
    assert isinstance(denoiser.mid_block, nn.Module)
    return [*down[1:], denoiser.mid_block, *up[:-1]]


def check_cache(rule: str, denoisers: Sequence[nn.Module], deep: Sequence[nn.Module]) -> None:
    """Check that features of the denoisers can be reused.

    Args:
        rule: see `cached`.
        denoisers: all denoisers of a pipeline.
        deep: their `deep_blocks`.

    Raises:
        UserError: not by this rule.
    """
    kind, name = rule.partition(":")[0], type(denoisers[0]).__name__
    if kind == "first_block" and not all(isinstance(denoiser, CacheMixin) for denoiser in denoisers):
        raise UserError(
            f"sampling.prefix_cache={rule}: diffusers cannot cache the features of {name}, only of "
            "transformers; set sampling.prefix_cache=deep_features:2 for a UNet, or none"
        )
    if kind == "deep_features" and not deep:
        raise UserError(
            f"sampling.prefix_cache={rule}: {name} has no levels of resolution, as UNets have; set "
            "sampling.prefix_cache=first_block:0.1 for a transformer, or none"
        )


@contextmanager
def cached(rule: str, denoisers: Sequence[nn.Module], deep: Sequence[nn.Module]) -> Iterator[None]:
    """Reuse features inside a ``with`` block, in which one sampling begins.

    Args:
        rule: ``none``; ``first_block:THRESHOLD`` skips all blocks but the first where its residual has
            changed by less than this fraction; ``deep_features:N`` computes the deep blocks at every N-th
            call of the denoiser only.
        denoisers: those that are called inside the ``with`` block.
        deep: their `deep_blocks`.
    """
    kind, _, number = rule.partition(":")
    with ExitStack() as undo:
        if kind == "first_block":
            for denoiser in denoisers:
                denoiser.enable_cache(FirstBlockCacheConfig(float(number)))  # type: ignore[operator]
                undo.callback(denoiser.disable_cache)  # type: ignore[arg-type]
        elif kind == "deep_features":
            for block in deep:
                replace_attribute(undo, block, "forward", _Reused(block.forward, int(number)))
        yield


class _Reused:
    """The forward pass of a block at every N-th call, and its last output at the calls between.

    As DeepCache (arXiv 2312.00858, section 3.3) with uniform steps: of the UNet's first level everything is
    computed, and of the levels below the output of an earlier step is used. A change of the number of rows,
    as at the borders of an interval of guidance, computes the output anew.
    """

    def __init__(self, forward: Callable[..., Any], every: int) -> None:
        self._forward, self._every = forward, every
        self._calls, self._rows, self._output = 0, 0, None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        rows = len(args[0] if args else kwargs["hidden_states"])
        if self._calls % self._every == 0 or rows != self._rows:
            self._output, self._rows = self._forward(*args, **kwargs), rows
        self._calls += 1
        return self._output
