"""Loading the tiny random pipeline, and gradients of its adapter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vader_ray import models
from vader_ray.config import AdapterConfig, MergedAdapter, ModelConfig, Precision, SamplingConfig

SAMPLING: dict[str, Any] = {
    "num_frames": 3,
    "height": 8,
    "width": 8,
    "num_inference_steps": 5,
    "guidance_scale": 3.0,
}


def load_tiny(
    folder: Path,
    *,
    precision: Precision = "float32",
    chunk_size: int = 1,
    seed: int = 0,
    loras: Sequence[MergedAdapter] = (),
    **sampling: Any,
) -> Any:
    """The tiny pipeline with an adapter of rank 2 on its attention."""
    return models.build(
        ModelConfig(
            family="modelscope",
            weights=str(folder),
            precision=precision,
            decoder_precision=precision,
            loras=tuple(loras),
        ),
        SamplingConfig(**(SAMPLING | sampling)),
        AdapterConfig(rank=2, alpha=4.0),
        seed=seed,
        chunk_size=chunk_size,
        device=torch.device("cpu"),
    )


def randomise_adapter(model: Any, seed: int = 1) -> None:
    """Give an adapter values that change the model: a fresh one has half of its gradients zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.adapter_parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter) * 0.3


def adapter_gradient(model: Any, objective: Tensor) -> Tensor:
    """The gradient of a scalar with respect to the adapter, as one vector."""
    gradients = torch.autograd.grad(
        objective, model.adapter_parameters(), allow_unused=True, materialize_grads=True
    )
    return torch.cat([gradient.flatten() for gradient in gradients])
