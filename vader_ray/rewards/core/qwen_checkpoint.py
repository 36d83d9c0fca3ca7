"""Published checkpoints of the Qwen families: files, names of weights, LoRA, strict loading."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped, unused-ignore]
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from vader_ray.errors import UserError
from vader_ray.rewards.core.transformers_loading import check_model_type, read_json
from vader_ray.weights import load_strictly, read_state_dict, resolve_weights, without_weights

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
SETTINGS = ("config.json", "tokenizer.json")
"""Files of a base network that a reward with weights of its own needs."""


def obtain_checkpoint(source: str) -> Path:
    """Return the folder of a whole checkpoint in transformers' format; that of a hub id is downloaded.

    Raises:
        UserError: the path is missing, or the hub cannot be reached.
    """
    folder = resolve_weights(source)
    if folder.exists():
        return folder
    patterns = ["*.json"] if without_weights() else ["*.json", "*.safetensors"]
    try:
        return Path(snapshot_download(source, allow_patterns=patterns))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UserError(
            f"cannot get the hub repository {source} ({type(error).__name__}: out of reach, and the local "
            f"cache has no copy); run `hf download {source}` where there is internet, or give a local path"
        ) from error


def read_checkpoint(folder: Path) -> dict[str, Tensor]:
    """Read the weights of a folder in one file or in several with an index.

    Raises:
        UserError: a file is missing or damaged.
    """
    if not (folder / INDEX).is_file():
        return read_state_dict(folder / SINGLE)
    index = read_json(folder / INDEX)
    if not isinstance(index, dict) or not isinstance(index.get("weight_map"), dict):
        raise UserError(f"{folder / INDEX} has no weight_map; download it again")
    state: dict[str, Tensor] = {}
    for name in sorted(set(index["weight_map"].values())):
        state |= read_state_dict(folder / name)
    return state


def present_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights under the names of transformers' ``Qwen2VLModel`` and its successors.

    Published names are those of transformers 4.45 (``visual.…``, ``model.layers.…``), the present ones
    (``model.visual.…``, ``model.language_model.…``), or either with the prefix of peft. Heads (``lm_head``,
    ``rm_head``) keep their names.
    """
    return {_present_name(name): tensor for name, tensor in state.items()}


def _present_name(name: str) -> str:
    name = name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".default.", ".")
    for old, new in (
        ("model.visual.", "visual."),
        ("model.language_model.", "language_model."),
        ("model.", "language_model."),
    ):
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def merge_lora(
    state: Mapping[str, Tensor], *, alpha: float, use_rslora: bool = False, source: Path
) -> dict[str, Tensor]:
    """Return the weights with each low-rank update added: W + (alpha / rank) · B · A.

    Args:
        state: weights under their present names.
        alpha: of the checkpoint's LoRA settings.
        use_rslora: whether the scale is alpha / √rank.
        source: for messages.

    Raises:
        UserError: an update has no weight, or half of it is missing.
    """
    updates = {name.removesuffix(".lora_A.weight") for name in state if name.endswith(".lora_A.weight")}
    merged = {name: tensor for name, tensor in state.items() if ".lora_" not in name}
    for name in updates:
        first, second = (state.get(f"{name}.lora_{part}.weight") for part in "AB")
        weight = merged.get(f"{name}.weight")
        if first is None or second is None or weight is None:
            raise UserError(
                f"{source} has no whole low-rank update of {name} with its weight; download it again"
            )
        scale = alpha / (math.sqrt(len(first)) if use_rslora else len(first))
        update = scale * (second.float() @ first.float())
        merged[f"{name}.weight"] = (weight.float() + update).to(weight.dtype)
    if unused := sorted(
        name for name in state if ".lora_" in name and name.rpartition(".lora_")[0] not in updates
    ):
        raise UserError(f"{source} has no whole low-rank update with {unused[0]}; download it again")
    return merged


def build_model(folder: Path, *model_types: str, num_tokens: int | None = None) -> nn.Module:
    """Return the network of a folder's ``config.json``, without values of its weights.

    Args:
        folder: with ``config.json``.
        model_types: architectures that fit.
        num_tokens: rows of the table of embeddings; by default those of the config.

    Raises:
        UserError: the config is missing, damaged or of another architecture.
    """
    check_model_type(folder, *model_types)
    try:
        config: Any = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder}/config.json is not usable ({reason}); copy it from the weights' hub repository"
        ) from error
    config.text_config.vocab_size = num_tokens or config.text_config.vocab_size
    with init_empty_weights(include_buffers=False):
        model: nn.Module = AutoModel.from_config(config, dtype=torch.float32)
    return model


def load_model(
    folder: Path, state: Mapping[str, Tensor], source: Path, *model_types: str, min_tokens: int
) -> nn.Module:
    """Return the network with every one of its weights.

    Args:
        folder: with ``config.json``.
        state: weights under their present names; those of heads are left out. On the meta device it may be
            empty.
        source: for messages.
        model_types: architectures that fit.
        min_tokens: number of tokens that the table of embeddings must have at least.

    Raises:
        UserError: weights are missing, unexpected or of another shape.
    """
    table = state.get("language_model.embed_tokens.weight")
    model = build_model(folder, *model_types, num_tokens=None if table is None else len(table))
    body = {name: tensor for name, tensor in state.items() if not name.startswith(("lm_head.", "rm_head."))}
    load_strictly(model, body, source)
    if table is not None and len(table) < min_tokens:
        raise UserError(
            f"{source} has {len(table)} embeddings and the tokenizer {min_tokens} tokens; give the tokenizer "
            "of these weights"
        )
    return model


def read_head(state: Mapping[str, Tensor], head: nn.Module, source: Path) -> None:
    """Set the weights of a reward's head from those named ``rm_head.…``.

    Raises:
        UserError: they are missing or of another shape.
    """
    weights = {
        name.removeprefix("rm_head."): tensor for name, tensor in state.items() if name.startswith("rm_head.")
    }
    if not weights and not without_weights():
        raise UserError(f"{source} has no rm_head, so it is no reward model; give one with its head")
    load_strictly(head, weights, source)


def read_settings(path: Path, *sections: str) -> dict[str, Any]:
    """Return a JSON file of settings that must have some sections.

    Raises:
        UserError: it is missing, damaged, or lacks a section.
    """
    settings = read_json(path)
    missing = [name for name in sections if not isinstance(settings, dict) or name not in settings]
    if missing:
        raise UserError(f"{path} has no {' and '.join(missing)}; copy it from the weights' hub repository")
    return dict(settings)


def read_text(path: Path) -> str:
    """Return the text of a file of a reward's folder.

    Raises:
        UserError: it is missing or no text.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}); give a text file") from error
