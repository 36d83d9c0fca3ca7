"""Devices and dtypes of networks, looked up once.

diffusers looks them up at every access by a walk over all submodules, for the hooks of its offloading: a
sampling of a large UNet took tenths of a second for it alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from diffusers import ModelMixin
from torch import nn

Found = TypeVar("Found")

_FOUND: WeakKeyDictionary[nn.Module, tuple[object, dict[str, Any]]] = WeakKeyDictionary()
"""Network → device and dtype of its first parameter, and what was looked up while it had these."""


def look_up_once(network: nn.Module, name: str, look_up: Callable[[nn.Module], Found]) -> Found:
    """Return what ``look_up`` found in a network; look it up again once the network was moved or cast.

    Args:
        network: any network.
        name: of what is looked up.
        look_up: a function of the devices and dtypes of the network's weights.
    """
    first = next(network.parameters(), None)
    placement = None if first is None else (first.device, first.dtype)
    known = _FOUND.get(network)
    if known is None or known[0] != placement:
        known = _FOUND[network] = (placement, {})
    if name not in known[1]:
        known[1][name] = look_up(network)
    found: Found = known[1][name]
    return found


def frozen_dtype(network: nn.Module) -> torch.dtype:
    """Return the smallest dtype of the frozen weights.

    Adapters and a few layers of some denoisers stay in float32.
    """
    return look_up_once(network, "frozen_dtype", _frozen_dtype)


def _frozen_dtype(network: nn.Module) -> torch.dtype:
    dtypes = {parameter.dtype for parameter in network.parameters() if not parameter.requires_grad}
    return min(
        (dtype for dtype in dtypes if dtype.is_floating_point), key=lambda dtype: torch.finfo(dtype).bits
    )


def remember_placement(network: nn.Module) -> None:
    """Make ``device`` and ``dtype`` of a network of diffusers cheap; another network stays as it is.

    Its class becomes a subclass of the same name. Offloading by hooks has to be set up before.
    """
    if isinstance(network, ModelMixin) and not isinstance(network, _Remembering):
        network.__class__ = _remembering(type(network))  # type: ignore[arg-type]


@contextmanager
def reported_dtype(network: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Let a network of `remember_placement` report a dtype inside a ``with`` block; change no other network.

    Loops of some pipelines convert the latents to what the denoiser reports.
    """
    if not isinstance(network, _Remembering):
        yield
        return
    own = network.dtype  # type: ignore[attr-defined]
    known = _FOUND[network][1]  # type: ignore[index]
    known["dtype"] = dtype
    try:
        yield
    finally:
        known["dtype"] = own


class _Remembering:
    """Mark of the subclasses that `remember_placement` makes; copies and pickles have the plain class."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        _, (kind, *arguments), *state = reduced
        return kind.__mro__[1].__new__, (kind.__mro__[1], *arguments), *state


@functools.cache
def _remembering(kind: Any) -> type:
    def remembered(name: str) -> property:
        look_up = getattr(kind, name).fget
        return property(lambda network: look_up_once(network, name, look_up))

    own = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    properties = {name: remembered(name) for name in ("device", "dtype")}
    return type(kind.__name__, (kind, _Remembering), own | properties)


def fix_device(network: Any, device: torch.device) -> None:
    """Make ``device`` of a network the one on which it computes; its weights may wait in host memory."""
    kind = type(network)
    if hasattr(kind, "device"):
        network.__class__ = type(kind.__name__, (kind,), {"device": property(lambda _: device)})


def fixed_execution_device(pipe: Any, network: nn.Module) -> AbstractContextManager[object]:
    """Fix the device on which a pipeline runs inside a ``with`` block, instead of a walk at each access.

    Args:
        pipe: a diffusers pipeline.
        network: one of its networks, with which the others are moved.
    """
    kind = type(pipe)
    if not hasattr(kind, "_execution_device"):
        return ExitStack()
    device = look_up_once(network, "execution_device", lambda _: pipe._execution_device)
    undo = ExitStack()
    undo.callback(setattr, pipe, "__class__", kind)
    pipe.__class__ = _fixed(kind, device)  # type: ignore[arg-type]
    return undo


@functools.cache
def _fixed(kind: type, device: torch.device) -> type:
    return type(kind.__name__, (kind,), {"_execution_device": device})
