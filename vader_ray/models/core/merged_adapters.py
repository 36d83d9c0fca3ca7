"""LoRA adapters of others that are merged into the frozen weights of a diffusers pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vader_ray.config import MergedAdapter
from vader_ray.errors import UserError, first_line
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
    """Merge adapters into a pipeline's weights, in their order, by diffusers' own loader.

    Raises:
        UserError: the pipeline's class has no loader, or an adapter is missing or not one of this model.
    """
    if adapters and not hasattr(pipe, "load_lora_weights"):
        raise UserError(
            f"model.loras: diffusers has no loader of adapters for {type(pipe).__name__}; leave it out"
        )
    for adapter in adapters:
        path = fetch_adapter(adapter)
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
            raise UserError(
                f"model.loras: {path} has no weights for {type(pipe).__name__}; give another file"
            )
        pipe.fuse_lora(components, lora_scale=adapter.scale, adapter_names=[_NAME])
        pipe.unload_lora_weights()
