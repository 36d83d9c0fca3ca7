"""Run a training step on the meta device to measure its peak memory without a GPU.

Tensors of the meta device have sizes and no values, so a step of any size runs on any machine.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from vader_ray.errors import UserError
from vader_ray.preflight.meta_kernels import MetaKernelCache
from vader_ray.preflight.trackers import FastDispatchMode, tensors_in

_ATTENTION = "scaled_dot_product_attention"
_plain_attention = functional.scaled_dot_product_attention
_plain_tensor = torch.tensor
META = torch.device("meta")
_SMALL = 2**16
"""Largest number of elements of a tensor whose values are kept."""
_INDEXING = {
    getattr(torch.ops.aten, name)
    for name in ("index", "_unsafe_index", "index_put", "index_put_", "_unsafe_index_put", "_index_put_impl_")
}
"""Kernels whose second argument is a list of indices or masks."""
_ASSUMED_ONE = (torch.bool, torch.bfloat16, torch.float16, torch.float32, torch.float64)


@contextmanager
def meta_device_mode() -> Iterator[HostMemoryTracker]:
    """Run code that was written for a real device on meta tensors; yield a tracker of its host memory.

    Within the context autocast, attention and ``torch.tensor`` are replaced, and `_ConstantTracker` supplies
    the values of tensors that the code reads.
    """
    with torch.device("cpu"):
        torch.empty(0)  # at the first use of such a block, torch remembers which functions create tensors
    with (
        _replaced(torch, "autocast", _Autocast),
        _replaced(functional, _ATTENTION, _attention),
        _replaced(torch, "tensor", _tensor),
        _ConstantTracker() as mode,
    ):
        yield mode.host


@contextmanager
def _replaced(module: Any, name: str, value: object) -> Iterator[None]:
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)


class HostMemoryTracker:
    """Track the bytes of tensors that were moved from the device to host memory and are still alive."""

    def __init__(self) -> None:
        self.now = 0
        """Bytes of the tensors that are alive."""
        self.peak = 0
        """Largest value of ``now``."""
        self.moved = 0
        """Bytes that were moved to host memory or back so far."""

    def track(self, tensor: Tensor) -> Tensor:
        """Count a tensor until its storage is freed, and return it."""
        self.moved += tensor.numel() * tensor.element_size()
        self._add(tensor.numel() * tensor.element_size())
        weakref.finalize(tensor.untyped_storage(), self._add, -tensor.numel() * tensor.element_size())
        return tensor

    def _add(self, num_bytes: int) -> None:
        self.now += num_bytes
        self.peak = max(self.peak, self.now)


class _Autocast(torch.autocast):
    """`torch.autocast` that is off for ``device_type="meta"``, for which torch raises.

    Networks use it to switch half precision off.
    """

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        if device_type == META.type:
            super().__init__("cpu", enabled=False)
        else:
            super().__init__(device_type, *args, **kwargs)


def _attention(  # noqa: PLR0913
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention that keeps what fused kernels keep; torch on the meta device would keep the softmax."""
    heads = query.ndim == key.ndim == value.ndim == 4 and query.shape[1] == key.shape[1]
    if not (
        query.is_meta and heads and query.shape[-1] == key.shape[-1] == value.shape[-1] and not dropout_p
    ):
        return _plain_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if (
        attn_mask is not None and attn_mask.dtype == torch.bool
    ):  # as torch does, which keeps the mask that it adds to the scores
        attn_mask = torch.where(attn_mask, query.new_zeros(()), query.new_full((), -torch.inf))
    result: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
    )[0]
    return result


def _tensor(data: Any, *, device: Any = None, **settings: Any) -> Tensor:
    """`torch.tensor`, which would make a meta tensor whose values no dispatch mode sees."""
    created = _plain_tensor(data, device="cpu" if _is_meta(device) else device, **settings)
    return created.to(META) if _is_meta(device) else created


def _is_meta(device: Any) -> bool:
    return device is not None and torch.device(device) == META


class _ConstantTracker(FastDispatchMode):
    """Keep the values of small constant tensors, so that ``.item()`` and masks work on the meta device.

    Small tensors from the host have known values, and so do those that are created as constants or computed
    from these alone: masks, indices, timesteps. For other tensors, every condition is true, every element of
    a mask is set and every real number is 1; reading an integer raises, since a size may depend on it. A copy
    to the host is a CPU tensor of the same shape whose elements share one number: it occupies no memory here.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known = WeakTensorKeyDictionary()
        self._kernels = MetaKernelCache()
        self.host = HostMemoryTracker()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if torch.Tag.pointwise in func.tags:
            args, given = self._on_one_device(args, given)
        known = self._known_inputs(args, given)
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return known[0][0].item() if known else _assumed_value(args[0])
        if func is torch.ops.aten.nonzero.default and args[0].is_meta:
            return self._nonzero(args[0], known and func(*known[0]))
        if func is torch.ops.aten._to_copy.default and args[0].is_meta and _to_host(given):
            return (
                known[0][0].clone()
                if known
                else self.host.track(torch.zeros((), dtype=args[0].dtype).expand(args[0].shape))
            )
        if func is torch.ops.aten._to_copy.default and not args[0].is_meta and given.get("device") == META:
            self.host.moved += args[0].numel() * args[0].element_size()
        if func._overloadpacket in _INDEXING:
            args = (args[0], self._without_masks(args[1]), *args[2:])
        result = self._kernels.run(func, args, given)
        if known and _is_small(result) and not _is_arbitrary(func):
            self._keep(result, func(*known[0], **known[1]))
        elif func._schema.is_mutable:
            for tensor in tensors_in(args, given.values()):
                self._known.pop(tensor, None)
        return result

    def _on_one_device(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Move inputs from the host to the device if others are there: schedulers' timesteps, for example."""
        tensors = list(tensors_in(args, kwargs.values()))
        if all(tensor.is_meta for tensor in tensors) or not any(tensor.is_meta for tensor in tensors):
            return args, kwargs
        moved: tuple[Any, Any] = tree_map_only(Tensor, self._moved, (args, kwargs))
        return moved

    def _moved(self, tensor: Tensor) -> Tensor:
        if tensor.is_meta or tensor.ndim == 0:
            return tensor
        result = torch.empty_like(tensor, device=META)
        if tensor.numel() <= _SMALL:
            self._known[result] = tensor
        return result

    def _known_inputs(self, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """The inputs with their values on the CPU; None if a tensor among them has no known value."""
        if any(tensor.is_meta and tensor not in self._known for tensor in tensors_in(args, kwargs.values())):
            return None
        values = tree_map_only(Tensor, lambda tensor: self._known.get(tensor, tensor), (args, kwargs))
        on_host: tuple[Any, Any] = tree_map_only(torch.device, lambda _: torch.device("cpu"), values)
        return on_host

    def _nonzero(self, mask: Tensor, indices: Tensor | None) -> Tensor:
        """Indices of a mask's true elements; if its values are unknown, of all elements."""
        if indices is None:
            return mask.new_empty(mask.numel(), mask.ndim, dtype=torch.long)
        result = mask.new_empty(indices.shape, dtype=torch.long)
        self._known[result] = indices
        return result

    def _without_masks(self, indices: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return the indices with masks on the device replaced by the positions of their true elements."""
        found = list[Tensor | None]()
        for index in indices:
            if index is None or not index.is_meta or index.dtype != torch.bool:
                found.append(index)
                continue
            value = self._known.get(index)
            found += self._nonzero(index, None if value is None else value.nonzero()).unbind(1)
        return found

    def _keep(self, result: Any, values: Any) -> None:
        for tensor, value in zip(tree_leaves(result), tree_leaves(values), strict=True):
            if isinstance(tensor, Tensor) and tensor.is_meta:
                self._known[tensor] = value


def _to_host(kwargs: dict[str, Any]) -> bool:
    return torch.device(kwargs.get("device") or META).type == "cpu"


def _is_arbitrary(func: Any) -> bool:
    """Whether a kernel's result has random values, or none yet."""
    has_no_values = "empty" in func._overloadpacket.__name__
    return has_no_values or torch.Tag.nondeterministic_seeded in func.tags


def _is_small(result: Any) -> bool:
    tensors = list(tensors_in((result,)))
    return any(tensor.is_meta for tensor in tensors) and all(tensor.numel() <= _SMALL for tensor in tensors)


def _assumed_value(number: Tensor) -> Any:
    if number.dtype in _ASSUMED_ONE:
        return torch.ones((), dtype=number.dtype, device="cpu").item()
    raise UserError(
        "this model cannot be counted without its weights: a size depends on what it computes; replace every "
        "setting that is auto by a value"
    )
