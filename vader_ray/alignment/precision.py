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
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    convolutions = cudnn.conv  # type: ignore[attr-defined]
    before = matmul.fp32_precision, convolutions.fp32_precision
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
        yield
    finally:  # torch raises where code reads ``allow_tf32`` after ``fp32_precision`` alone was changed
        matmul.allow_tf32, cudnn.allow_tf32 = (earlier == "tf32" for earlier in before)
        matmul.fp32_precision, convolutions.fp32_precision = before
