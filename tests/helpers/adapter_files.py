"""Adapters in peft's format, whose settings a test writes."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from vader_ray.models.adapters.files import PEFT_PREFIX, SETTINGS, WEIGHTS


def write_adapter(folder: Path, settings: bytes) -> None:
    """Write an adapter of rank 2 of one layer, as another program does: without a manifest."""
    folder.mkdir(exist_ok=True)
    layer = f"{PEFT_PREFIX}block.to_q"
    weights = {f"{layer}.lora_A.weight": torch.ones(2, 4), f"{layer}.lora_B.weight": torch.ones(4, 2)}
    save_file(weights, folder / WEIGHTS)
    (folder / SETTINGS).write_bytes(settings)
