"""Load pipelines without weights, on the meta device, from their configuration files."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModelMixin, pipelines
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedModel

from vader_ray.models.core.motion_adapter import animate_on_meta, finish_animation


def load_meta_pipeline(
    kind: type[DiffusionPipeline], source: str, dtype: torch.dtype, motion_adapter: str | None = None
) -> Any:
    """Load a pipeline with its networks on the meta device and its scheduler on the CPU; reads no weights.

    Args:
        motion_adapter: AnimateDiff's motion modules for the image model of `source`.

    Raises:
        OSError: a configuration file cannot be read or downloaded.
    """
    index = DiffusionPipeline.load_config(source)
    parts = {
        name: _network(source, name, entry[0], entry[1], dtype)
        for name, entry in index.items()
        if _names_a_class(entry)
    }
    networks = {name: network for name, network in parts.items() if network is not None}
    if motion_adapter is not None:
        networks["unet"] = animate_on_meta(networks["unet"], motion_adapter, dtype)
    for network in networks.values():
        accept_host_tensors(network)
    extra = {} if motion_adapter is None else {"motion_adapter": None}
    pipe = kind.from_pretrained(source, dtype=dtype, **networks, **extra)
    if motion_adapter is not None:
        finish_animation(pipe)
    pipe.scheduler.__class__ = _timesteps_on_cpu(type(pipe.scheduler))
    return pipe


def _names_a_class(value: object) -> bool:
    """Return whether an entry of model_index.json gives the library and the class of a component."""
    return isinstance(value, list) and len(value) == 2 and _library(value[0]) is not None


def _library(name: str | None) -> Any:
    """Return the module of a component's class; that of a pipeline's own components is in diffusers."""
    if name in ("diffusers", "transformers"):
        return importlib.import_module(name)
    return getattr(pipelines, name, None) if name else None


def _network(source: str, name: str, library: str, class_name: str, dtype: torch.dtype) -> nn.Module | None:
    """Return one network of a pipeline in its dtype after loading; None for other components."""
    kind = getattr(_library(library), class_name)
    with torch.device("meta"):
        if issubclass(kind, ModelMixin):
            return _cast(kind.from_config(kind.load_config(source, subfolder=name)), dtype)
        if issubclass(kind, PreTrainedModel):
            config = kind.config_class.from_pretrained(source, subfolder=name)  # type: ignore[union-attr]
            network: nn.Module = kind._from_config(config, dtype=dtype)
            return network
    return None


def _cast(network: Any, dtype: torch.dtype) -> nn.Module:
    """Convert a network to a dtype as diffusers does on loading.

    Some layers of some networks stay in float32 when the rest is half precision.
    """
    kept = (network._keep_in_fp32_modules or ()) if dtype.itemsize < 4 else ()
    for name, parameter in network.named_parameters():
        if not any(part in name.split(".") for part in kept):
            parameter.data = parameter.data.to(dtype)
    cast: nn.Module = network
    return cast


def accept_host_tensors(network: nn.Module) -> None:
    """Move a meta-device network's inputs that the loop has computed on the CPU, such as timesteps."""
    network.register_forward_pre_hook(_inputs_to_meta, with_kwargs=True)


def _inputs_to_meta(_network: nn.Module, args: Any, kwargs: Any) -> Any:
    return tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))


def _timesteps_on_cpu(base: Any) -> type:
    """Return a subclass of a scheduler's class that keeps its timesteps on the CPU, as they index tables."""

    @functools.wraps(base.set_timesteps)
    def set_timesteps(scheduler: Any, *args: Any, **kwargs: Any) -> None:
        base.set_timesteps(scheduler, *args, **kwargs | {"device": "cpu"})

    return type(base.__name__, (base,), {"set_timesteps": set_timesteps})
