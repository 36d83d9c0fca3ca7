"""Memory and speed of devices by their data sheets, and the assumed utilisation of a training step.

Memory is as PyTorch reports it. TFLOP/s are the dense ones of the vendor's data sheet. `Device.seconds` is an
estimate, no measurement: an operation takes the time of its arithmetic at the assumed utilisation or the time
to read and write its tensors, whichever is longer, and the processor needs a minimum time to launch each
kernel.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import psutil

from vader_ray.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from vader_ray.preflight.trackers import Kind, OpRecord
    from vader_ray.preflight.traffic import Traffic

GIB = 2**30
UTILISATION: dict[Kind, float] = {"matmul": 0.5, "convolution": 0.3, "other": 0.3}
"""Assumed fraction of the data sheet's TFLOP/s. 50 to 60 % is usual for the large matrices of transformers,
20 to 40 % for convolutions."""
BANDWIDTH_SHARE = 0.7
"""Assumed fraction of the data sheet's memory bandwidth."""
LINK_SHARE = 0.7
"""Assumed fraction of the data sheet's bandwidth between GPUs, and between a GPU and host memory."""
NOMINAL_SHARE = 0.98
"""Memory that PyTorch reports of a card's nominal GB, in GiB: 0.979 for an rtx4090, 0.99 for an h100."""
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
    link_gigabytes_per_second: float = 32
    """GB/s in each direction to the other GPUs of a machine: NVLink, or PCIe 4.0 with 16 lanes."""
    host_gigabytes_per_second: float = 32
    """GB/s in each direction to host memory: PCIe 4.0 or 5.0 with 16 lanes."""

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

    def traffic_seconds(self, traffic: Traffic) -> float:
        """Estimate the time to move what `Traffic` counts, if nothing is computed meanwhile.

        Frames of rewards in other processes are left out, whose network is not known.
        """
        link = (traffic.weights + traffic.activations + traffic.adapter) / self.link_gigabytes_per_second
        return (link + traffic.host / self.host_gigabytes_per_second) / (1e9 * LINK_SHARE)

    def _operation_seconds(self, operation: OpRecord) -> float:
        arithmetic = operation.flops / (1e12 * self._tflops(operation) * UTILISATION[operation.kind])
        return max(arithmetic, operation.num_bytes / (1e12 * self.terabytes_per_second * BANDWIDTH_SHARE))

    def _tflops(self, operation: OpRecord) -> float:
        if operation.num_bits <= 16:
            return self.half_tflops
        if operation.num_bits == 64:
            return self.single_tflops / 2
        return self.tf32_tflops if operation.kind == "convolution" else self.single_tflops


_A100_LINKS = {"link_gigabytes_per_second": 300}
_HOPPER_LINKS = {"link_gigabytes_per_second": 450, "host_gigabytes_per_second": 64}
DEVICES = {
    "a10g": Device(22.0, 70, 35, 31.2, 0.60),
    "a100-40": Device(39.4, 312, 156, 19.5, 1.56, **_A100_LINKS),
    "a100-80": Device(79.3, 312, 156, 19.5, 2.04, **_A100_LINKS),
    "b200": Device(178.3, 2250, 1100, 75, 7.7, link_gigabytes_per_second=900, host_gigabytes_per_second=64),
    "h100": Device(79.2, 989, 495, 67, 3.35, **_HOPPER_LINKS),
    "h200": Device(139.8, 989, 495, 67, 4.80, **_HOPPER_LINKS),
    "l4": Device(22.0, 121, 60, 30.3, 0.30),
    "l40s": Device(44.4, 362, 183, 91.6, 0.86),
    "rtx4090": Device(23.5, 165, 82.6, 82.6, 1.01),
    "rtx5090": Device(31.4, 209, 105, 105, 1.79, link_gigabytes_per_second=64, host_gigabytes_per_second=64),
}
_SIZE = re.compile(r"(\d{1,4})gb")
_MACHINE = re.compile(r"(\d{1,4})x(.+)")


def check_devices(names: Iterable[str]) -> None:
    """Refuse names of devices, and of machines of several, that are not known.

    Raises:
        UserError: there is no device of one of these names, or a machine has no GPU.
    """
    known = (*DEVICES, "cpu")
    for name in names:
        num_gpus, card = split_machine(name)
        if _key(card) not in known and not _SIZE.fullmatch(_key(card)):
            nearest = did_you_mean(_key(card), known)
            raise UserError(
                f"--devices: there is no {card!r}; {nearest}choose from {', '.join(known)}, or give "
                "the memory of a card, e.g. 24GB"
            )
        if num_gpus == 0 or (num_gpus is not None and _key(card) == "cpu"):
            raise UserError(
                f"--devices: {name!r} is no machine; give a number of GPUs and their name, e.g. 8xrtx4090"
            )


def split_machine(name: str) -> tuple[int | None, str]:
    """Return the number of GPUs of a machine such as ``8xrtx4090``, None without a number, and the device."""
    found = _MACHINE.fullmatch(name)
    return (int(found[1]), found[2]) if found else (None, name)


def is_machine(name: str) -> bool:
    """Whether a name begins with a number of GPUs."""
    return split_machine(name)[0] is not None


def device(name: str) -> Device:
    """Return the device of a name, of any case; ``a100-80GB`` is ``a100-80``.

    ``cpu`` is this machine, measured with one matrix multiplication. ``24GB`` has this memory and, for lack
    of other numbers, the speed of `nearest_device`.

    Raises:
        UserError: as `check_devices`.
    """
    check_devices([name])
    if _key(name) == "cpu":
        tflops = _cpu_tflops()
        memory = psutil.virtual_memory().total / GIB
        return Device(memory, tflops, tflops, tflops, 0.02, launch_seconds=LAUNCH_SECONDS)
    if nearest := nearest_device(name):
        return replace(DEVICES[nearest], memory_gib=_nominal_gib(name))
    return DEVICES[_key(name)]


def nearest_device(name: str) -> str | None:
    """Return the device whose memory is nearest to a plain size such as ``24GB``; None for other names."""
    if not _SIZE.fullmatch(_key(name)):
        return None
    return min(DEVICES, key=lambda known: abs(DEVICES[known].memory_gib - _nominal_gib(name)))


def _nominal_gib(name: str) -> float:
    return NOMINAL_SHARE * int(name.lower().removesuffix("gb"))


def _key(name: str) -> str:
    """Return a device's name as it is in the table."""
    lower = name.lower()
    return lower.removesuffix("gb") if lower.removesuffix("gb") in DEVICES else lower


def _cpu_tflops() -> float:
    """Measure this process's TFLOP/s, at the assumed utilisation."""
    import torch  # which takes seconds; names are checked without it

    matrix = torch.rand(1024, 1024)
    matrix @ matrix
    started = time.perf_counter()
    matrix @ matrix
    return 2 * 1024**3 / (time.perf_counter() - started) / 1e12 / UTILISATION["matmul"]
