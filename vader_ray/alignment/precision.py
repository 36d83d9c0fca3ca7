"""Precision of the products that frozen networks compute in float32 on NVIDIA GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vader_ray.config import MatmulPrecision


@contextmanager
def matmul_precision(precision: MatmulPrecision) -> Iterator[None]:
    """Compute products of float32 matrices and float32 convolutions in a precision inside a ``with`` block.

    Torch's switches hold for all threads of the process, so also for a backward pass inside the block. They
    have no effect on CPUs and on other dtypes.

    Args:
        precision: ``tf32`` rounds the factors to 10 bits of mantissa, ``highest`` rounds nothing.
    """
    switches = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        yield
    finally:
        for switch, earlier in zip(switches, before, strict=True):
            switch.fp32_precision = earlier
