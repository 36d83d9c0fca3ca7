"""Model families, their adapters and the wrapper for loaded pipelines.

``vader_ray/models/wan.py`` is the family ``wan``; its class is ``WanModel``.
"""

from __future__ import annotations

from typing import Any

import torch

from vader_ray.config import ActivationCheckpointing, AdapterConfig, ModelConfig, SamplingConfig
from vader_ray.models.adapters.export import Format as AdapterFormat
from vader_ray.models.adapters.export import export as export_adapter
from vader_ray.models.adapters.files import read_shape as adapter_shape
from vader_ray.models.adapters.lora import load_into as load_adapter
from vader_ray.models.adapters.merge import mix as mix_adapters
from vader_ray.models.base import VideoModel
from vader_ray.plugins import Registry

__all__ = [
    "AdapterFormat",
    "VideoModel",
    "adapter_shape",
    "build",
    "export_adapter",
    "fetch",
    "load_adapter",
    "mix_adapters",
    "names",
    "resolve",
]

_FAMILIES = Registry(
    "vader_ray.models", kind="Model", noun="model.family", shared=("adapters", "base", "core")
)


def names() -> list[str]:
    """Return the model families of this package."""
    return _FAMILIES.names()


def resolve(family: str) -> Any:
    """Return the class of a family: a name of `names`, ``my.module`` or ``my.module.ClassName``.

    Raises:
        ConfigError: there is no such family; the message gives the rule and the names.
    """
    return _FAMILIES.resolve(family)


def fetch(model: ModelConfig) -> str:
    """The folder of the model's weights; those of a hub id are downloaded first.

    Raises:
        ConfigError, ValueError: there is no such family, or the hub does not give the weights.
    """
    return str(resolve(model.family).fetch(model))


def build(
    model: ModelConfig,
    sampling: SamplingConfig,
    adapter: AdapterConfig | None,
    *,
    seed: int,
    chunk_size: int,
    device: torch.device,
    activation_checkpointing: ActivationCheckpointing = "none",
    compile_blocks: bool = False,
) -> Any:
    """A pretrained model on a device, with a fresh adapter unless there shall be none."""
    built = resolve(model.family).load(model, sampling, chunk_size=chunk_size, device=device)
    if adapter is not None:
        built.add_adapter(adapter, seed)
    built.apply_memory_optimizations(activation_checkpointing, compile_blocks=compile_blocks)
    return built
