"""Model families: ``vader_ray/models/modelscope.py`` is the family ``modelscope``; its class is called ``Model``."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from vader_ray.config import ActivationCheckpointing, AdapterConfig, ConfigError, ModelConfig, SamplingConfig
from vader_ray.models.adapters.export import Format as AdapterFormat
from vader_ray.models.adapters.export import export as export_adapter
from vader_ray.models.adapters.files import read_shape as adapter_shape
from vader_ray.models.adapters.lora import load_into as load_adapter
from vader_ray.models.adapters.merge import mix as mix_adapters

SHARED = ("__init__", "adapters", "base", "core")
"""Files and folders of this package that are no model family."""

__all__ = [
    "AdapterFormat",
    "adapter_shape",
    "build",
    "export_adapter",
    "fetch",
    "load_adapter",
    "mix_adapters",
    "names",
    "resolve",
]


def names() -> list[str]:
    """The families of this package."""
    files = [
        path
        for path in Path(__file__).parent.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    ]
    return sorted(path.stem for path in files if path.stem not in SHARED)


def resolve(family: str) -> Any:
    """The class of a family: a file of this folder, or ``Model`` of a dotted module outside the package.

    Raises:
        ConfigError: there is no such file or module.
    """
    module = family if "." in family else f"{__name__}.{family}"
    if "." not in family and family not in names():
        raise ConfigError(
            f"model.family: there is no {family!r}; choose one of {', '.join(names())} or the dotted name of your module"
        )
    try:
        return importlib.import_module(module).Model
    except ModuleNotFoundError as error:
        raise ConfigError(f"model.family: cannot import {error.name!r}; is it on PYTHONPATH?") from None
    except AttributeError:
        raise ConfigError(f"model.family: the module {module} has no class Model") from None


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
