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
from vader_ray.errors import UserError, first_line
from vader_ray.files import give_ordinary_mode
from vader_ray.manifest import MANIFEST, find_damage, write_manifest
from vader_ray.models.adapters.checks import DOWN, check_settings, check_weights
from vader_ray.weights import read_state_dict

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
PEFT_PREFIX = "base_model.model."
"""Prefix of every key that ``peft.PeftModel.from_pretrained(denoiser, folder)`` expects."""
PEFT_ALPHA = 8.0
"""Alpha of a bare state dict: peft's default, and that of the adapters published by the authors of VADER."""
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
    complete(folder, WEIGHTS, SETTINGS)


def complete(folder: Path, *names: str) -> None:
    """Give an adapter's files their permissions and manifest, after they have been written."""
    files = [folder / name for name in names]
    give_ordinary_mode(files)
    write_manifest(folder, files)


def read_shape(source: Path, *, bare_alpha: float = PEFT_ALPHA) -> AdapterConfig:
    """Return rank, alpha and target modules of a saved adapter.

    Args:
        source: folder of an adapter, or file of a bare state dict.
        bare_alpha: alpha of a bare state dict, which does not contain it.

    Raises:
        UserError: there is no adapter, or it is damaged.
    """
    if source.is_file():
        weights, rank = read_bare(source)
        targets = {_target(name) for name in weights if name.endswith(DOWN)}
        return AdapterConfig(rank=rank, alpha=bare_alpha, target_modules=tuple(sorted(targets)))
    return read(source)[1]


def read(folder: Path) -> tuple[dict[str, Tensor], AdapterConfig]:
    """Return weights under peft's keys, and rank, alpha and target modules, from a folder in either format.

    An adapter of another program has no manifest; the files of any other must be as they were written.

    Raises:
        UserError: there is no adapter, or it is damaged.
    """
    if (folder / MANIFEST).exists() and (damage := find_damage(folder)) is not None:
        raise UserError(
            f"the adapter in {folder} is damaged: {damage}; copy it again or take an earlier checkpoint "
            f"(after a deliberate change, delete {folder / MANIFEST})"
        )
    is_for_diffusers = (folder / LORA_WEIGHT_NAME_SAFE).is_file()
    if not is_for_diffusers and not all((folder / name).is_file() for name in (WEIGHTS, SETTINGS)):
        raise UserError(f"{folder} has no adapter; give a folder with {WEIGHTS} and {SETTINGS}")
    try:
        if is_for_diffusers:
            weights, settings = _read_for_diffusers(folder / LORA_WEIGHT_NAME_SAFE)
        else:
            weights = load_file(folder / WEIGHTS)
            settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except UserError:
        raise
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"the adapter in {folder} is damaged ({first_line(error)}); take another copy or an earlier "
            "checkpoint"
        ) from None
    weights = {key.removeprefix(PEFT_PREFIX): value for key, value in weights.items()}
    shape = check_settings(settings, folder)
    check_weights(weights, shape.rank, folder)
    return weights, shape


def _read_for_diffusers(path: Path) -> tuple[dict[str, Tensor], Any]:
    with safe_open(path, framework="pt") as file:
        settings = json.loads((file.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY, "null"))
        weights = {key.partition(".")[2]: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if settings is None:
        raise UserError(
            f"{path} has no metadata with rank, alpha and target modules; it was not saved by this program"
        )
    if isinstance(settings, dict):
        settings = {key.partition(".")[2]: value for key, value in settings.items()}
    return weights, settings


def read_bare(file: Path) -> tuple[dict[str, Tensor], int]:
    """Return the tensors of a bare peft state dict by the denoiser's own names, and their rank.

    The names in the file may contain the adapter's name and begin with the modules that contain the denoiser.

    Raises:
        UserError: the file is damaged, or no state dict of one LoRA.
    """
    weights = {name.replace(".default.", "."): value for name, value in read_state_dict(file).items()}
    for wrapper in _WRAPPERS * 2:
        if all(name.startswith(wrapper) for name in weights):
            weights = {name.removeprefix(wrapper): value for name, value in weights.items()}
    ranks = {len(value) for name, value in weights.items() if name.endswith(DOWN) and value.ndim}
    if len(ranks) != 1:
        raise UserError(
            f"{file} must have layers of one rank, not of {sorted(ranks)}; give a peft state dict of one LoRA"
        )
    (rank,) = ranks
    check_weights(weights, rank, file)
    return weights, rank


def _target(name: str) -> str:
    """Return the end of a layer's name that names its kind: ``to_q``, ``to_out.0``."""
    *parents, last = name.removesuffix(DOWN).split(".")
    return f"{parents[-1]}.{last}" if last.isdigit() and parents else last
