"""A tiny VideoCrafter2 checkpoint with random weights, in the published layout.

Names and shapes in ``tests/data`` are those of the state dict of the published network
(AILab-CVC/VideoCrafter at 11bcd76, ``LatentDiffusion``, which loads ``model.ckpt`` strictly): ``published``
as configured by its ``inference_t2v_512_v2.0.yaml``; ``tiny`` with 32 channels in multiples of 1, 2, 3
(transformers on two of three levels), heads of 16, one residual block per level, an autoencoder of 32, 64
channels and a text encoder of 128 channels, 2 heads, 3 layers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.helpers.published_layouts import draw_inputs, draw_weights, read_layout
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
    return read_layout(f"videocrafter2_{name}")


def random_weights(seed: int = 0) -> dict[str, Tensor]:
    """Weights of the tiny network that leave no layer without effect; the schedule is the published one."""
    return draw_weights(layout("tiny"), seed) | _schedule()


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
    return draw_inputs(
        {
            "latents": (2, 4, 3, 8, 12),
            "context": (2, 77, 128),
            "noise": (2, 4, 3, 8, 12),
            "step_noise": (2, 4, 3, 8, 12),
        }
    )
