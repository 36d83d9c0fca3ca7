"""What devices hold and how fast they compute: data sheets, and how much of them a training step is assumed to reach.

Memory is what PyTorch reports. TFLOP/s are dense ones of the vendor's data sheet. `seconds` is an estimate, and nothing here
was measured: an operation takes as long as its arithmetic at the assumed utilisation, or as reading and writing its tensors,
whichever is longer, and no kernel starts sooner than the processor can launch it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import psutil
import torch

from vader_ray.config import ConfigError
from vader_ray.preflight.trackers import Kind, OpRecord

GIB = 2**30
UTILISATION: dict[Kind, float] = {"matmul": 0.5, "convolution": 0.3, "other": 0.3}
"""Share of the data sheet's TFLOP/s: 50 to 60 % is usual for the large matrices of transformers, 20 to 40 % for convolutions."""
BANDWIDTH_SHARE = 0.7
LAUNCH_SECONDS = 6e-6
"""Of one kernel without CUDA graphs, autograd included."""
FRAGMENTATION = 1.05
"""The allocator's blocks over the tensors in them."""
LIBRARIES_GIB = 1.0
"""CUDA's context, cuDNN's and cuBLAS's working memory, NCCL's buffers."""


def fits(num_bytes: int, free_bytes: float) -> bool:
    """Whether tensors of so many bytes fit into free memory, beside what is not counted."""
    return num_bytes * FRAGMENTATION + LIBRARIES_GIB * GIB <= free_bytes


@dataclass(frozen=True, slots=True)
class Device:
    """One device of a worker."""

    memory_gib: float
    half_tflops: float
    """bfloat16 and float16, accumulated in float32."""
    tf32_tflops: float
    """What PyTorch uses for float32 convolutions; its float32 matrix multiplications take `single_tflops`."""
    single_tflops: float
    terabytes_per_second: float
    launch_seconds: float = LAUNCH_SECONDS

    def fits(self, num_bytes: int) -> bool:
        """Whether tensors of so many bytes fit beside what is not counted."""
        return fits(num_bytes, self.memory_gib * GIB)

    def seconds(self, operations: Mapping[OpRecord, int]) -> float:
        """An estimate of the time of these operations, one after the other."""
        computing = sum(self._one(operation) * times for operation, times in operations.items())
        return max(computing, self.launch_seconds * sum(operations.values()))

    def _one(self, operation: OpRecord) -> float:
        arithmetic = operation.flops / (1e12 * self._tflops(operation) * UTILISATION[operation.kind])
        return max(arithmetic, operation.num_bytes / (1e12 * self.terabytes_per_second * BANDWIDTH_SHARE))

    def _tflops(self, operation: OpRecord) -> float:
        if operation.num_bits <= 16:
            return self.half_tflops
        if operation.num_bits == 64:
            return self.single_tflops / 2
        return self.tf32_tflops if operation.kind == "convolution" else self.single_tflops


DEVICES = {
    "a10g": Device(22.0, 70, 35, 31.2, 0.60),
    "a100-40": Device(39.4, 312, 156, 19.5, 1.56),
    "a100-80": Device(79.3, 312, 156, 19.5, 2.04),
    "h100": Device(79.2, 989, 495, 67, 3.35),
    "h200": Device(139.8, 989, 495, 67, 4.80),
    "l40s": Device(44.4, 362, 183, 91.6, 0.86),
    "rtx4090": Device(23.5, 165, 82.6, 82.6, 1.01),
}


def device(name: str) -> Device:
    """The device of a name; ``cpu`` is this machine, whose speed is that of one matrix multiplication.

    Raises:
        ConfigError: nobody knows it.
    """
    if name == "cpu":
        tflops = _cpu_tflops()
        memory = psutil.virtual_memory().total / GIB
        return Device(memory, tflops, tflops, tflops, 0.02, launch_seconds=LAUNCH_SECONDS)
    if name not in DEVICES:
        raise ConfigError(f"--devices: there is no {name!r}; choose from {', '.join((*DEVICES, 'cpu'))}")
    return DEVICES[name]


def _cpu_tflops() -> float:
    """Of this process at the utilisation that is assumed of it."""
    matrix = torch.rand(1024, 1024)
    matrix @ matrix
    started = time.perf_counter()
    matrix @ matrix
    return 2 * 1024**3 / (time.perf_counter() - started) / 1e12 / UTILISATION["matmul"]
