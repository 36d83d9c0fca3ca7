"""Cached results of kernels on the meta device are those of the kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vader_ray.preflight.meta_kernels import MetaKernelCache
from vader_ray.preflight.trackers import tensors_in

aten = torch.ops.aten
META = torch.device("meta")


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


def _layouts(result: Any) -> list[tuple[Any, ...]]:
    return [
        (item.shape, item.stride(), item.dtype, item.device.type, item.untyped_storage().nbytes())
        for item in tensors_in((result,))
    ]


@pytest.mark.parametrize(
    ("func", "arguments", "settings"),
    [
        (aten.mm.default, lambda: (_meta(3, 4), _meta(4, 5)), {}),
        (aten.add.Tensor, lambda: (_meta(3, 4).t(), 1), {}),
        (aten.add.Tensor, lambda: (_meta(3, 4), 1.5), {"alpha": 2}),
        (aten.cat.default, lambda: ([_meta(3, 4), _meta(5, 4)],), {}),
        (aten._to_copy.default, lambda: (_meta(3, 4).t(),), {"dtype": torch.bfloat16}),
        (aten.native_layer_norm.default, lambda: (_meta(3, 4), [4], None, None, 1e-5), {}),
        (aten.convolution.default, lambda: (_meta(1, 2, 8, 8).to(memory_format=torch.channels_last),
            _meta(3, 2, 3, 3), None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1), {}),
        (aten.empty.memory_format, lambda: ([2, 3],), {"device": META}),
    ],
)  # fmt: skip
def test_the_second_call_returns_what_the_kernel_returns(
    func: Any, arguments: Callable[[], tuple[Any, ...]], settings: dict[str, Any]
) -> None:
    kernels = MetaKernelCache()
    calls = list[Any]()

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            calls.append(func)
            return func(*args, **(kwargs or {}))

    given = arguments()
    first = kernels.run(func, given, settings)
    with Recorder():  # type: ignore[no-untyped-call]
        second = kernels.run(func, given, settings)
    assert _layouts(first) == _layouts(second) == _layouts(func(*given, **settings))
    assert type(first) is type(second)
    assert set(calls) == {aten.empty_strided.default}
    storages = {item.untyped_storage()._cdata for item in tensors_in((first,), (second,))}
    assert len(storages) == 2 * len(list(tensors_in((first,))))


def test_equal_numbers_of_different_types_are_different_settings() -> None:
    kernels = MetaKernelCache()
    integers = _meta(3, dtype=torch.int64)
    assert kernels.run(aten.mul.Tensor, (integers, 1), {}).dtype == torch.int64
    assert kernels.run(aten.mul.Tensor, (integers, 1.0), {}).dtype == torch.float32
    assert kernels.run(aten.mul.Tensor, (_meta(3, dtype=torch.int32), 1), {}).dtype == torch.int32


def test_views_and_results_in_place_share_storage_each_time() -> None:
    kernels, tensor = MetaKernelCache(), _meta(3, 4)
    for func, arguments in (
        (aten.view.default, (tensor, [12])),
        (aten._unsafe_view.default, (tensor, [12])),
        (aten.add_.Tensor, (tensor, 1)),
    ):
        for _ in range(2):
            result = kernels.run(func, arguments, {})
            assert result.untyped_storage()._cdata == tensor.untyped_storage()._cdata
