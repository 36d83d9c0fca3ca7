"""A tiny VideoCrafter2 checkpoint with random weights, in the published layout.

Names and shapes in ``tests/data`` are those of the state dict of the published network
(AILab-CVC/VideoCrafter at 11bcd76, ``LatentDiffusion``, which loads ``model.ckpt`` strictly): ``published``
as configured by its ``inference_t2v_512_v2.0.yaml``; ``tiny`` with 32 channels in multiples of 1, 2, 3
(transformers on two of three levels), heads of 16, one residual block per level, an autoencoder of 32, 64
channels and a text encoder of 128 channels, 2 heads, 3 layers.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.helpers.paths import TESTS
from vader_ray import models
from vader_ray.config import AdapterConfig, ModelConfig, Precision, SamplingConfig
from vader_ray.models.videocrafter2.scheduler import DynamicRescaleDDIMScheduler

SAMPLING: dict[str, Any] = {
    "num_frames": 3,
    "height": 8,
    "width": 16,
    "num_inference_steps": 4,
    "guidance_scale": 3.0,
    "eta": 1.0,
}


def layout(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all weights, ``published`` or ``tiny``."""
    packed = TESTS / "data" / f"videocrafter2_{name}.txt.gz"
    lines = [line.split() for line in gzip.decompress(packed.read_bytes()).decode().splitlines()]
    return {key: () if shape == "scalar" else tuple(map(int, shape.split("x"))) for key, shape in lines}


def random_weights(seed: int = 0) -> dict[str, Tensor]:
    """Weights of the tiny network that leave no layer without effect; the schedule is the published one."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: _draw(name, shape, generator) for name, shape in sorted(layout("tiny").items())
    } | _schedule()


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    values = torch.randn(shape, generator=generator)
    if len(shape) < 2:
        return 0.1 * values + float(name.endswith(".weight"))  # norms scale by about one
    return values / values[0].numel() ** 0.5


def _schedule() -> dict[str, Tensor]:
    scheduler = DynamicRescaleDDIMScheduler()
    return {"betas": scheduler.betas, "scale_arr": torch.cat([scheduler.scales, torch.full((400,), 0.7)])}


def write_checkpoint(folder: Path, weights: dict[str, Tensor]) -> Path:
    """The weights as Lightning saves them."""
    path = folder / "model.ckpt"
    torch.save({"state_dict": weights, "epoch": 0, "global_step": 0}, path)
    return path


def load_tiny(
    weights: Path, *, precision: Precision = "float32", chunk_size: int = 1, seed: int = 0, **sampling: Any
) -> Any:
    """The tiny pipeline with an adapter of rank 2."""
    return models.build(
        ModelConfig(
            family="videocrafter2", weights=str(weights), precision=precision, decoder_precision=precision
        ),
        SamplingConfig(**(SAMPLING | sampling)),
        AdapterConfig(rank=2, alpha=4.0),
        seed=seed,
        chunk_size=chunk_size,
        device=torch.device("cpu"),
    )


def inputs() -> dict[str, Tensor]:
    """Random inputs of the networks and of one denoising step."""
    generator = torch.Generator().manual_seed(1)
    shapes = {
        "latents": (2, 4, 3, 8, 12),
        "context": (2, 77, 128),
        "noise": (2, 4, 3, 8, 12),
        "step_noise": (2, 4, 3, 8, 12),
    }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def summary(values: Tensor) -> list[float]:
    """Mean, deviation and sixteen evenly spaced values."""
    flat = values.detach().double().flatten()
    samples = flat[torch.linspace(0, len(flat) - 1, 16).long()]
    return [float(number) for number in (flat.mean(), flat.std(), *samples)]
