"""LoRA adapters of others that are merged into the frozen weights of a diffusers pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vader_ray.config import MergedAdapter
from vader_ray.errors import UserError, first_line
from vader_ray.models.adapters import lora
from vader_ray.models.adapters.files import SETTINGS
from vader_ray.weights import resolve_weights

_NAME = "merged"


def fetch_adapter(adapter: MergedAdapter) -> Path:
    """Return the local file or folder of an adapter; a file on the hub is downloaded first.

    Raises:
        UserError: it does not exist, or cannot be downloaded.
    """
    found = resolve_weights(adapter.weights, *([adapter.file] if adapter.file else []))
    path = found / adapter.file if adapter.file else found
    if not path.exists():
        raise UserError(f"model.loras: {path} does not exist; correct `weights` or `file`")
    return path


def merge_adapters(pipe: Any, adapters: Sequence[MergedAdapter]) -> None:
    """Merge adapters into a pipeline's weights, in their order.

    Folders in peft's format (``adapter_config.json``) are read by this package, as those of pipelines without
    a loader of their own are saved so; all others by diffusers' own loader.

    Raises:
        UserError: the pipeline's class has no loader, or an adapter is missing or not one of this model.
    """
    for adapter in adapters:
        path = fetch_adapter(adapter)
        if (path / SETTINGS).is_file():
            _merge_peft(pipe, path, adapter)
        else:
            _merge_by_diffusers(pipe, path, adapter)


def _merge_peft(pipe: Any, path: Path, adapter: MergedAdapter) -> None:
    if adapter.denoiser is not None:
        raise UserError(
            f"model.loras: {path} is in peft's format, whose folders name the networks; leave out `denoiser`"
        )
    for name in lora.load_into(pipe, path):
        network = getattr(pipe, name)
        with lora.scaled(network, adapter.scale):
            lora.merge(network)


def _merge_by_diffusers(pipe: Any, path: Path, adapter: MergedAdapter) -> None:
    denoiser = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    if not hasattr(pipe, "load_lora_weights") or not hasattr(denoiser, "load_lora_adapter"):
        raise UserError(
            f"model.loras: diffusers has no loader of adapters for {type(pipe).__name__}; give a folder with "
            f"{SETTINGS}, or leave it out"
        )
    options: dict[str, Any] = {"adapter_name": _NAME}
    if path.is_file():
        options["weight_name"] = path.name
    if adapter.denoiser is not None:
        options[f"load_into_{adapter.denoiser}"] = True
    try:
        pipe.load_lora_weights(path.parent if path.is_file() else path, **options)
    except (OSError, ValueError, RuntimeError, LookupError, TypeError) as error:
        raise UserError(
            f"model.loras: {path} cannot be loaded into {type(pipe).__name__}: {first_line(error)}"
        ) from error
    components = [name for name, names in pipe.get_list_adapters().items() if _NAME in names]
    if not components:
        raise UserError(f"model.loras: {path} has no weights for {type(pipe).__name__}; give another file")
    pipe.fuse_lora(components, lora_scale=adapter.scale, adapter_names=[_NAME])
    pipe.unload_lora_weights()
