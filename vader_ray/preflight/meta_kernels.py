"""Cache of the layouts that kernels return on the meta device.

Their implementations, written in Python, took more than half of the time of a count.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vader_ray.preflight.trackers import tensors_in

_PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)


class _Layout(NamedTuple):
    """Size, strides and dtype of a meta tensor whose storage has the bytes of its elements."""

    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    def make(self) -> Tensor:
        """Create a tensor of this layout."""
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device="meta")


class MetaKernelCache:
    """Run each kernel once per layout of its inputs; later calls create tensors of the layout it returned."""

    def __init__(self) -> None:
        self._known: dict[Hashable, _Layout | tuple[_Layout | None, ...] | None] = {}

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Call a kernel, or create what it returned for inputs of these layouts and settings."""
        key = _key(func, args, kwargs) if _is_pure(func) else None
        if key is None:
            return func(*args, **kwargs)
        if key not in self._known:
            result = func(*args, **kwargs)
            self._known[key] = _layouts(result, tensors_in(args, kwargs.values()))
            return result
        known = self._known[key]
        if known is None:
            return func(*args, **kwargs)
        if isinstance(known, _Layout):
            return known.make()
        return tuple(layout and layout.make() for layout in known)


@cache
def _is_pure(func: Any) -> bool:
    """Whether a kernel only creates tensors: it writes to no input and the shapes do not depend on values."""
    declared = (*func._schema.arguments, *func._schema.returns)
    depends_on_values = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags)
    return not depends_on_values and all(item.alias_info is None for item in declared)


def _key(func: Any, args: Any, kwargs: Any) -> Hashable | None:
    """Kernel, layouts of its inputs and settings; None if one of them is of another kind."""
    try:
        return (func, _describe(args), tuple(kwargs), _describe(kwargs.values()))
    except TypeError:
        return None


def _describe(values: Iterable[Any]) -> Hashable:
    described = list[Hashable]()
    for value in values:
        if isinstance(value, Tensor):
            described.append((value.shape, value.stride(), value.dtype, value.device.type))
        elif isinstance(value, list | tuple):
            described.append((type(value), _describe(value)))
        elif isinstance(value, _PLAIN):
            described.append((type(value), value))  # 1, 1.0 and True are equal
        else:
            raise TypeError(type(value))
    return tuple(described)


def _layouts(result: Any, given: Iterable[Tensor]) -> _Layout | tuple[_Layout | None, ...] | None:
    """Layouts of new meta tensors, None for a gradient that is not needed.

    None alone if a result is of another kind or shares the storage of an input.
    """
    all_results = (result,) if isinstance(result, Tensor) else result
    if not isinstance(all_results, tuple):
        return None
    results = [item for item in all_results if item is not None]
    if not all(isinstance(item, Tensor) and item.is_meta for item in results):
        return None
    layouts = [_Layout(item.shape, item.stride(), item.dtype) for item in results]
    used = [tensor.untyped_storage()._cdata for tensor in (*given, *results)]
    is_shared = any(used.count(item.untyped_storage()._cdata) > 1 for item in results)
    is_whole = all(
        item.untyped_storage().nbytes() == layout.make().untyped_storage().nbytes()
        for item, layout in zip(results, layouts, strict=True)
    )
    if is_shared or not is_whole:
        return None
    if isinstance(result, Tensor):
        return layouts[0]
    in_order = iter(layouts)
    return tuple(None if item is None else next(in_order) for item in all_results)
