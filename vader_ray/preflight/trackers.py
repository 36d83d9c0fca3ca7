"""Dispatch modes that track the memory and the kernel calls of tensors on any device, also on meta."""

from __future__ import annotations

import weakref
from collections import ChainMap, Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch._C._distributed_c10d import _resolve_process_group
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

Kind: TypeAlias = Literal["matmul", "convolution", "other"]
_CONVOLUTIONS = (torch.ops.aten.convolution, torch.ops.aten.convolution_backward)
_ATTENTION = {
    kernel: flop_registry[known]
    for known, kernels in {
        torch.ops.aten._scaled_dot_product_flash_attention: (
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu,
            torch.ops.aten._scaled_dot_product_fused_attention_overrideable,
            torch.ops.aten._scaled_dot_product_attention_math_for_mps,
        ),
        torch.ops.aten._scaled_dot_product_flash_attention_backward: (
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward,
            torch.ops.aten._scaled_dot_product_fused_attention_overrideable_backward,
        ),
    }.items()
    for kernel in kernels
}
"""Attention kernels for which torch has no formula, with its formula for the same computation: two matrix
products forward (4·S²·D·H), five backward, since the scores are computed again (10·S²·D·H). A causal mask
counts as a full one."""
FLOP_FORMULAS = ChainMap(flop_registry, _ATTENTION)
"""Floating-point operations of a kernel as a function of its inputs: torch's formulas and those above."""


_RECEIVED: dict[str, Callable[[int, int], float]] = {
    "all_to_all_single": lambda num_bytes, size: num_bytes * (size - 1) / size,
    "all_gather_into_tensor": lambda num_bytes, size: num_bytes * (size - 1),
    "all_reduce": lambda num_bytes, size: 2 * num_bytes * (size - 1) / size,
}
"""Bytes that one of ``size`` processes receives in a collective on a tensor of ``num_bytes``, in a ring."""
_WAITING = ("wait_tensor", "_wrap_tensor_autograd")
"""Functions beside the collectives that move nothing."""


def tensors_in(*groups: Iterable[Any]) -> Iterator[Tensor]:
    """Tensors among a kernel's arguments or results, which are values or lists of values.

    Many times faster than `torch.utils._pytree`, which also looks for registered classes.
    """
    for group in groups:
        for item in group:
            if isinstance(item, Tensor):
                yield item
            elif isinstance(item, list | tuple):
                yield from tensors_in(item)


class FastDispatchMode(TorchDispatchMode):
    """Base class of modes that `torch.compile` never meets; torch's guard against that costs time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class PeakMemoryTracker(FastDispatchMode):
    """Track the bytes of tensors created within the context: ``max_memory_allocated`` for any device.

    Includes the backward pass and recomputations, and excludes scratch memory within kernels.

    Args:
        device: type of the devices whose tensors are tracked, by default all.
    """

    def __init__(self, device: str | None = None) -> None:
        super().__init__()
        self._device = device
        self.now = 0
        """Bytes of the tensors that are alive."""
        self.peak = 0
        """Largest value of ``now``."""
        self._alive = set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {tensor.untyped_storage()._cdata for tensor in tensors_in(args, (kwargs or {}).values())}
        for tensor in tensors_in((result,)):
            storage = tensor.untyped_storage()
            is_new = storage._cdata not in given and storage._cdata not in self._alive
            if is_new and self._device in (None, tensor.device.type):  # others are views and in-place results
                self._add(storage)
        return result

    def add_call(self, peak: int, result: Tensor, *, held: int, kept: int) -> None:
        """Count a call that is not computed, and its result.

        Args:
            peak: of the call, ``held`` included.
            result: tensor that is tracked until it is freed.
            held: bytes that were counted before and that the call frees.
            kept: bytes that the call adds beside the result.
        """
        self.peak = max(self.peak, self.now - held + peak)
        self.now += kept - held
        self._add(result.untyped_storage())

    def _add(self, storage: torch.UntypedStorage) -> None:
        self._alive.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._release, storage._cdata, storage.nbytes())

    def _release(self, storage: int, num_bytes: int) -> None:
        self._alive.discard(storage)
        self.now -= num_bytes


@dataclass(frozen=True, slots=True)
class OpRecord:
    """Kind and size of one kernel call."""

    kind: Kind
    """Kind of arithmetic; attention is a matrix multiplication."""
    num_bits: int
    """Bits of one number."""
    flops: int
    """Floating-point operations, where a multiplication with an addition is two; 0 for other kinds."""
    num_bytes: int
    """Bytes read and written, if every input is read once."""


class OpCounter(FastDispatchMode):
    """Count a device's kernel calls, including backward pass and recomputations, excluding views.

    Collectives of other kinds than `_RECEIVED` raise.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device
        self.operations = Counter[OpRecord]()
        self.received = 0
        """Bytes that collectives bring from other processes."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = list(tensors_in(args, (kwargs or {}).values(), (result,)))
        if not _is_view(func) and any(tensor.device.type == self._device for tensor in tensors):
            self.operations[_operation(func, args, kwargs or {}, result, tensors)] += 1
            if func.namespace == "_c10d_functional":
                self.received += _received_bytes(func, args, kwargs or {})
        return result


def _received_bytes(func: Any, args: Any, kwargs: Any) -> int:
    """Return the bytes that a collective brings from other processes."""
    name = func._overloadpacket.__name__
    if name in _WAITING:
        return 0
    size = _resolve_process_group(kwargs.get("group_name", args[-1])).size()
    return round(_RECEIVED[name](args[0].numel() * args[0].element_size(), size))


def _is_view(func: Any) -> bool:
    aliases = [returned.alias_info for returned in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _operation(func: Any, args: Any, kwargs: Any, result: Any, tensors: list[Tensor]) -> OpRecord:
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    # The first dtype: attention also returns its softmax's denominators, always in float32.
    packet, dtypes = func._overloadpacket, [tensor.dtype for tensor in tensors if tensor.is_floating_point()]
    num_bits = 8 * (dtypes[0].itemsize if dtypes else 4)
    if packet not in FLOP_FORMULAS:
        return OpRecord("other", num_bits, 0, num_bytes)
    kind: Kind = "convolution" if packet in _CONVOLUTIONS else "matmul"
    return OpRecord(kind, num_bits, int(FLOP_FORMULAS[packet](*args, **kwargs, out_val=result)), num_bytes)
