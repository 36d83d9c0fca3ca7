"""Files of adapters: peft's two, diffusers' one with its metadata, and bare state dicts of peft."""

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
from vader_ray.weights import read_state_dict

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
PEFT_PREFIX = "base_model.model."
"""`peft.PeftModel.from_pretrained(denoiser, folder)` expects it before every key."""
PEFT_ALPHA = 8.0
"""Alpha of who states none: peft's default, and that of the adapters that the authors of VADER publish."""
DOWN = ".lora_A.weight"


def write_peft(weights: dict[str, Tensor], settings: LoraConfig, folder: Path) -> None:
    """Write weights under peft's own keys, and peft's settings file, the same for the same settings."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {PEFT_PREFIX + key: value.contiguous() for key, value in weights.items()}
    save_file(named, folder / WEIGHTS, metadata={"format": "pt"})
    settings.save_pretrained(str(folder))
    written = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    written["target_modules"] = sorted(
        written["target_modules"]
    )  # peft writes a set in an order that changes
    (folder / SETTINGS).write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_shape(source: Path, *, bare_alpha: float = PEFT_ALPHA) -> AdapterConfig:
    """Rank, alpha and targets of a saved adapter; a bare state dict tells no alpha, ``bare_alpha`` does."""
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
    """Weights under peft's own keys, and peft's settings, of either format."""
    try:
        if (folder / LORA_WEIGHT_NAME_SAFE).exists():
            return _read_for_diffusers(folder / LORA_WEIGHT_NAME_SAFE)
        weights = load_file(folder / WEIGHTS)
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no adapter; give a folder with {WEIGHTS} and {SETTINGS}") from None
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(
            f"the adapter in {folder} is damaged ({error}); take an earlier checkpoint"
        ) from None
    return {key.removeprefix(PEFT_PREFIX): value for key, value in weights.items()}, settings


def _read_for_diffusers(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(path, framework="pt") as file:
        settings = json.loads((file.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY, "{}"))
        weights = {key.partition(".")[2]: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    settings = {key.partition(".")[2]: value for key, value in settings.items()}
    if not {"r", "lora_alpha", "target_modules"} <= settings.keys():
        raise ValueError(
            f"{path} does not say its rank, alpha and target modules; it was not saved by this program"
        )
    return weights, settings


def read_bare(file: Path) -> dict[str, Tensor]:
    """The tensors of a peft state dict, with or without the adapter's name in their names."""
    return {name.replace(".default.", "."): value for name, value in read_state_dict(file).items()}


def rank_of(weights: dict[str, Tensor], source: Path) -> int:
    """The one rank of all layers; ``source`` is for the message."""
    ranks = {len(value) for name, value in weights.items() if name.endswith(DOWN)}
    if len(ranks) != 1:
        raise ValueError(
            f"{source} holds no adapter of one rank but {sorted(ranks)}; give a peft state dict of one LoRA"
        )
    return ranks.pop()


def _target(name: str) -> str:
    """The end of a layer's name that tells its kind: ``to_q``, ``to_out.0``."""
    *parents, last = name.removesuffix(DOWN).split(".")
    return f"{parents[-1]}.{last}" if last.isdigit() and parents else last
