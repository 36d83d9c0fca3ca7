"""Read and write adapter files of peft (two files) and diffusers (one file), and bare state dicts.

A saved adapter is a folder. The first denoiser's part is in the folder itself, that of every other network in
a subfolder of the network's name. In diffusers' format one file has the first denoiser and the text encoders,
since ``load_lora_weights`` reads them together.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
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
_FILES = (WEIGHTS, SETTINGS, LORA_WEIGHT_NAME_SAFE, MANIFEST)
"""Files by which a network's part of an adapter is found; one that is damaged may lack some."""
PEFT_PREFIX = "base_model.model."
"""Prefix of every key that ``peft.PeftModel.from_pretrained(denoiser, folder)`` expects."""
PEFT_ALPHA = 8.0
"""Alpha of a bare state dict: peft's default, and that of the adapters published by the authors of VADER."""
_WRAPPERS = ("base_model.", "model.", "diffusion_model.", "unet.", "transformer.")
"""Prefixes of the modules that may contain the denoiser in a bare state dict."""
DENOISERS = ("unet", "transformer", "transformer_2")
"""Names of denoisers in diffusers' video pipelines."""
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
"""Names of text encoders in them."""
FIRST = ""
"""Name of the first denoiser in a saved adapter."""


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
    for path in files:
        if path.suffix == ".safetensors":
            _sort_metadata(path)
    give_ordinary_mode(files)
    write_manifest(folder, files)


def _sort_metadata(path: Path) -> None:
    """Sort the metadata of a safetensors file by name, so that equal adapters have equal bytes.

    The library writes them in an order of chance. A file is the length of the header (8 bytes), the header
    (JSON, filled up with spaces to a multiple of 8), and the tensors, whose places are relative to its end.
    """
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    written = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    written += b" " * (-len(written) % 8)
    path.write_bytes(len(written).to_bytes(8, "little") + written + content[end:])


def saved_networks(source: Path) -> list[str]:
    """Return the networks of a saved adapter: `FIRST`, names of other denoisers, names of text encoders.

    Args:
        source: folder of an adapter, or file of a bare state dict, which has the first denoiser.

    Raises:
        UserError: there is no adapter, or it is damaged.
    """
    if source.is_file():
        return [FIRST]
    names = (FIRST, *DENOISERS, *TEXT_ENCODERS)
    found = {name for name in names if any((source / name / file).is_file() for file in _FILES)}
    if (source / LORA_WEIGHT_NAME_SAFE).is_file():
        found = found - {FIRST} | set(_networks_of_file(source))
    if not found:
        raise UserError(f"{source} has no adapter; give a folder with {WEIGHTS} and {SETTINGS}")
    return [name for name in names if name in found]


def is_for_diffusers(source: Path) -> bool:
    """Return whether a saved adapter is in diffusers' format."""
    return any((source / name / LORA_WEIGHT_NAME_SAFE).is_file() for name in (FIRST, *DENOISERS))


def _networks_of_file(folder: Path) -> Iterator[str]:
    """Yield the network of each tensor of a folder's file in diffusers' format."""
    with _undamaged(folder), safe_open(folder / LORA_WEIGHT_NAME_SAFE, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118
            name = key.partition(".")[0]
            yield name if name in TEXT_ENCODERS else FIRST


def read_shape(source: Path, *, bare_alpha: float = PEFT_ALPHA, denoiser: str | None = None) -> AdapterConfig:
    """Return rank and alpha of a saved adapter, and target modules of its denoiser, if it has one.

    Args:
        source: folder of an adapter, or file of a bare state dict.
        bare_alpha: alpha of a bare state dict, which does not contain it.
        denoiser: name of the pipeline's first denoiser; with it, the result has ``networks``, too.

    Raises:
        UserError: there is no adapter, or it is damaged.
    """
    names = saved_networks(source)
    shape = read_network_shape(source, names[0], bare_alpha=bare_alpha)
    if names[0] in TEXT_ENCODERS:
        shape = shape.model_copy(update={"target_modules": None})
    if denoiser is None:
        return shape
    return shape.model_copy(update={"networks": tuple(name or denoiser for name in names)})


def read_network_shape(source: Path, network: str, *, bare_alpha: float = PEFT_ALPHA) -> AdapterConfig:
    """Return rank, alpha and target modules of one of the `saved_networks`.

    Raises:
        UserError: there is no adapter, or it is damaged.
    """
    if source.is_file():
        weights, rank = read_bare(source)
        targets = {_target(name) for name in weights if name.endswith(DOWN)}
        return AdapterConfig(rank=rank, alpha=bare_alpha, target_modules=tuple(sorted(targets)))
    return read(source, network)[1]


def read(source: Path, network: str = FIRST) -> tuple[dict[str, Tensor], AdapterConfig]:
    """Return a network's weights under peft's keys, and rank, alpha and target modules, from either format.

    An adapter of another program has no manifest; the files of any other must be as they were written.

    Args:
        source: folder of a saved adapter.
        network: one of its `saved_networks`.

    Raises:
        UserError: there is no adapter, or it is damaged.
    """
    is_shared = network in TEXT_ENCODERS and (source / LORA_WEIGHT_NAME_SAFE).is_file()
    folder = source if is_shared else source / network
    with _undamaged(folder):
        if (folder / LORA_WEIGHT_NAME_SAFE).is_file():
            weights, settings = _read_for_diffusers(folder / LORA_WEIGHT_NAME_SAFE, network)
        elif all((folder / name).is_file() for name in (WEIGHTS, SETTINGS)):
            weights = load_file(folder / WEIGHTS)
            settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        else:
            raise UserError(f"{folder} has no adapter; give a folder with {WEIGHTS} and {SETTINGS}")
    weights = {key.removeprefix(PEFT_PREFIX): value for key, value in weights.items()}
    shape = check_settings(settings, folder)
    check_weights(weights, shape.rank, folder)
    return weights, shape


@contextmanager
def _undamaged(folder: Path) -> Iterator[None]:
    """Compare the files of a folder with its manifest, if it has one, and explain errors of reading them."""
    if (folder / MANIFEST).exists() and (damage := find_damage(folder)) is not None:
        raise UserError(
            f"the adapter in {folder} is damaged: {damage}; copy it again or take an earlier checkpoint "
            f"(after a deliberate change, delete {folder / MANIFEST})"
        )
    try:
        yield
    except UserError:
        raise
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"the adapter in {folder} is damaged ({first_line(error)}); take another copy or an earlier "
            "checkpoint"
        ) from None


def _read_for_diffusers(path: Path, network: str) -> tuple[dict[str, Tensor], Any]:
    """Return weights and settings of a text encoder, or of the denoiser, from diffusers' file."""

    def is_wanted(key: str) -> bool:
        name = key.partition(".")[0]
        return name == network if network in TEXT_ENCODERS else name not in TEXT_ENCODERS

    with safe_open(path, framework="pt") as file:
        settings = json.loads((file.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY, "null"))
        wanted = filter(is_wanted, file.keys())
        weights = {key.partition(".")[2]: file.get_tensor(key) for key in wanted}
    if settings is None:
        raise UserError(
            f"{path} has no metadata with rank, alpha and target modules; it was not saved by this program"
        )
    if isinstance(settings, dict):
        settings = {key.partition(".")[2]: value for key, value in settings.items() if is_wanted(key)}
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
