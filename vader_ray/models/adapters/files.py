"""Read and write adapter files of peft (two files) and diffusers (one file), and bare state dicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from vader_ray.config import AdapterConfig
from vader_ray.errors import UserError
from vader_ray.weights import read_state_dict

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
PEFT_PREFIX = "base_model.model."
"""Prefix of every key that ``peft.PeftModel.from_pretrained(denoiser, folder)`` expects."""
PEFT_ALPHA = 8.0
"""Alpha of a bare state dict: peft's default, and that of the adapters published by the authors of VADER."""
DOWN = ".lora_A.weight"
"""End of the key of a layer's A, ``rank × in``."""
_WRAPPERS = ("base_model.", "model.", "diffusion_model.", "unet.", "transformer.")
"""Prefixes of the modules that may contain the denoiser in a bare state dict."""


def write_peft(weights: dict[str, Tensor], settings: LoraConfig, folder: Path) -> None:
    """Write weights under peft's keys, and peft's settings file; the same settings give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {PEFT_PREFIX + key: value.contiguous() for key, value in weights.items()}
    save_file(named, folder / WEIGHTS, metadata={"format": "pt"})
    settings.save_pretrained(str(folder))
    written = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    written["target_modules"] = sorted(
        written["target_modules"]
    )  # peft writes a set, in an order that changes
    (folder / SETTINGS).write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_shape(source: Path, *, bare_alpha: float = PEFT_ALPHA) -> AdapterConfig:
    """Return rank, alpha and target modules of a saved adapter.

    Args:
        source: folder of an adapter, or file of a bare state dict.
        bare_alpha: alpha of a bare state dict, which does not contain it.

    Raises:
        UserError: there is no adapter, or it is damaged.
    """
    if source.is_file():
        weights = read_bare(source)
        targets = {_target(name) for name in weights if name.endswith(DOWN)}
        return AdapterConfig(
            rank=rank_of(weights, source), alpha=bare_alpha, target_modules=tuple(sorted(targets))
        )
    settings = read(source)[1]
    return AdapterConfig(
        rank=settings["r"],
        alpha=settings["lora_alpha"],
        target_modules=tuple(sorted(settings["target_modules"])),
    )


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return weights under peft's keys and peft's settings, from a folder in either format."""
    try:
        if (folder / LORA_WEIGHT_NAME_SAFE).exists():
            return _read_for_diffusers(folder / LORA_WEIGHT_NAME_SAFE)
        weights = load_file(folder / WEIGHTS)
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} has no adapter; give a folder with {WEIGHTS} and {SETTINGS}") from None
    except (SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"the adapter in {folder} is damaged ({error}); take an earlier checkpoint") from None
    return {key.removeprefix(PEFT_PREFIX): value for key, value in weights.items()}, settings


def _read_for_diffusers(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(path, framework="pt") as file:
        settings = json.loads((file.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY, "{}"))
        weights = {key.partition(".")[2]: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    settings = {key.partition(".")[2]: value for key, value in settings.items()}
    if not {"r", "lora_alpha", "target_modules"} <= settings.keys():
        raise UserError(
            f"{path} has no metadata with rank, alpha and target modules; it was not saved by this program"
        )
    return weights, settings


def read_bare(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a bare peft state dict by the denoiser's own names.

    The names in the file may contain the adapter's name and begin with the modules that contain the denoiser.
    """
    weights = {name.replace(".default.", "."): value for name, value in read_state_dict(file).items()}
    for wrapper in _WRAPPERS * 2:
        if all(name.startswith(wrapper) for name in weights):
            weights = {name.removeprefix(wrapper): value for name, value in weights.items()}
    return weights


def rank_of(weights: dict[str, Tensor], source: Path) -> int:
    """Return the rank, which all layers must share; ``source`` is for the message."""
    ranks = {len(value) for name, value in weights.items() if name.endswith(DOWN)}
    if len(ranks) != 1:
        raise UserError(
            f"{source} must have layers of one rank, not of {sorted(ranks)}; give a peft state dict of one "
            "LoRA"
        )
    return ranks.pop()


def _target(name: str) -> str:
    """Return the end of a layer's name that names its kind: ``to_q``, ``to_out.0``."""
    *parents, last = name.removesuffix(DOWN).split(".")
    return f"{parents[-1]}.{last}" if last.isdigit() and parents else last
