"""Memory and speed of devices by their data sheets, and the assumed utilisation of a training step.

Memory is as PyTorch reports it. TFLOP/s are the dense ones of the vendor's data sheet. `Device.seconds` is an
estimate, no measurement: an operation takes the time of its arithmetic at the assumed utilisation or the time
to read and write its tensors, whichever is longer, and the processor needs a minimum time to launch each
kernel.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from vader_ray.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from vader_ray.preflight.trackers import Kind, OpRecord

GIB = 2**30
UTILISATION: dict[Kind, float] = {"matmul": 0.5, "convolution": 0.3, "other": 0.3}
"""Assumed fraction of the data sheet's TFLOP/s. 50 to 60 % is usual for the large matrices of transformers,
20 to 40 % for convolutions."""
BANDWIDTH_SHARE = 0.7
"""Assumed fraction of the data sheet's memory bandwidth."""
LAUNCH_SECONDS = 6e-6
"""Seconds to launch one kernel without CUDA graphs, autograd included."""
FRAGMENTATION = 1.05
"""Ratio of the allocator's blocks to the tensors in them."""
LIBRARIES_GIB = 1.0
"""GiB of CUDA's context, of cuDNN's and cuBLAS's workspaces and of NCCL's buffers."""


def fits(num_bytes: int, free_bytes: float) -> bool:
    """Whether tensors of ``num_bytes`` fit into free memory, with fragmentation and libraries."""
    return num_bytes * FRAGMENTATION + LIBRARIES_GIB * GIB <= free_bytes


@dataclass(frozen=True, slots=True)
class Device:
    """Memory and speed of one device."""

    memory_gib: float
    """Total memory in GiB, as PyTorch reports it."""
    half_tflops: float
    """TFLOP/s of bfloat16 and float16 with float32 accumulation."""
    tf32_tflops: float
    """TFLOP/s of TF32, which PyTorch uses for float32 convolutions and not for matrix multiplications."""
    single_tflops: float
    """TFLOP/s of float32."""
    terabytes_per_second: float
    """Memory bandwidth in TB/s."""
    launch_seconds: float = LAUNCH_SECONDS
    """Seconds to launch one kernel."""

    def fits(self, num_bytes: int) -> bool:
        """Whether tensors of ``num_bytes`` fit, with fragmentation and libraries."""
        return fits(num_bytes, self.memory_gib * GIB)

    def seconds(self, operations: Mapping[OpRecord, int]) -> float:
        """Estimate the time of operations that run one after the other.

        Args:
            operations: number of calls of each kernel.
        """
        computing = sum(self._operation_seconds(operation) * times for operation, times in operations.items())
        return max(computing, self.launch_seconds * sum(operations.values()))

    def _operation_seconds(self, operation: OpRecord) -> float:
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


def check_devices(names: Iterable[str]) -> None:
    """Refuse names of devices that are not known.

    Raises:
        UserError: there is no device of one of these names.
    """
    known = (*DEVICES, "cpu")
    for name in names:
        if name not in known:
            nearest = did_you_mean(name, known)
            raise UserError(f"--devices: there is no {name!r}; {nearest}choose from {', '.join(known)}")


def device(name: str) -> Device:
    """Return the device of a name; ``cpu`` is this machine, measured with one matrix multiplication.

    Raises:
        UserError: as `check_devices`.
    """
    check_devices([name])
    if name == "cpu":
        tflops = _cpu_tflops()
        memory = psutil.virtual_memory().total / GIB
        return Device(memory, tflops, tflops, tflops, 0.02, launch_seconds=LAUNCH_SECONDS)
    return DEVICES[name]


def _cpu_tflops() -> float:
    """Measure this process's TFLOP/s, at the assumed utilisation."""
    import torch  # which takes seconds; names are checked without it

    matrix = torch.rand(1024, 1024)
    matrix @ matrix
    started = time.perf_counter()
    matrix @ matrix
    return 2 * 1024**3 / (time.perf_counter() - started) / 1e12 / UTILISATION["matmul"]
