"""Export saved adapters to the formats of other programs, and merge an adapter into its network.

Keys of a layer LAYER with the update ``alpha / rank · B A``; A is ``rank × in``, B is ``out × rank``:

- ``diffusers``: ``transformer.LAYER.lora_A.weight`` and ``lora_B``, of UNets ``unet.LAYER…``, of text
  encoders ``text_encoder.LAYER…``; rank and alpha are in the file's metadata.
- ``peft``: ``base_model.model.LAYER.lora_A.weight`` and ``lora_B``; rank and alpha are in
  ``adapter_config.json``.
- ``comfyui``: ``diffusion_model.LAYER.lora_A.weight``, ``lora_B`` and ``LAYER.alpha`` of transformers; of
  UNets (kohya's format) ``lora_unet_LAYER.lora_down.weight``, ``lora_up`` and ``alpha``, with underscores
  for the dots of the layer's name; of their text encoders ``lora_te_LAYER…`` and ``lora_te2_LAYER…``
  (``model_lora_keys_clip``). LAYER is the name in ComfyUI's network.

The first denoiser and the text encoders are in one file of ``diffusers`` and ``comfyui``, and every further
denoiser in a file of its own; in ``peft``'s format every network has its own files.

ComfyUI accepts these keys for every weight ``diffusion_model.LAYER.weight`` of its own network
(``comfy/lora.py``, ``model_lora_keys_unet``; ``comfy/weight_adapter/lora.py``). Its networks have the
layer names of the models' authors: those of LTX-Video (``comfy/ldm/lightricks/model.py``) differ from
diffusers' by `_LTX`, those of Wan (``comfy/ldm/wan/model.py``) by `_WAN`, as in comfyanonymous/ComfyUI at
005d2d3 and 01c4fa4; those of UNets are in `vader_ray.models.adapters.comfyui_unet`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from vader_ray.errors import UserError
from vader_ray.files import give_ordinary_mode
from vader_ray.hub import find_adapter
from vader_ray.manifest import write_checksum
from vader_ray.models.adapters import comfyui_unet, files
from vader_ray.models.adapters.checks import DOWN, UP

Format: TypeAlias = Literal["diffusers", "comfyui", "peft"]
_COMFYUI_NAME = "comfyui.safetensors"
_COMFYUI_TEXT = {"text_encoder": "lora_te", "text_encoder_2": "lora_te2"}
_UNET = re.compile(r"(down_blocks|mid_block|up_blocks|transformer_in|conv_in|conv_out|time_embedding)\b")

_WAN = {
    r"\.attn1\.": ".self_attn.",
    r"\.attn2\.": ".cross_attn.",
    r"\.to_([qkv])$": r".\1",
    r"\.to_out\.0$": ".o",
    r"\.add_([kv])_proj$": r".\1_img",
    r"\.ffn\.net\.0\.proj$": ".ffn.0",
    r"\.ffn\.net\.2$": ".ffn.2",
    r"^condition_embedder\.text_embedder\.linear_1$": "text_embedding.0",
    r"^condition_embedder\.text_embedder\.linear_2$": "text_embedding.2",
    r"^condition_embedder\.time_embedder\.linear_1$": "time_embedding.0",
    r"^condition_embedder\.time_embedder\.linear_2$": "time_embedding.2",
    r"^condition_embedder\.time_proj$": "time_projection.1",
    r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj$": "img_emb.proj.1",
    r"^condition_embedder\.image_embedder\.ff\.net\.2$": "img_emb.proj.3",
    r"^proj_out$": "head.head",
}
_LTX = {r"^proj_in$": "patchify_proj", r"^time_embed\.": "adaln_single."}


@dataclass(frozen=True, slots=True)
class Saved:
    """One network's part of a saved adapter."""

    layers: dict[str, tuple[Tensor, Tensor]]
    """A (``rank × in``) and B (``out × rank``) of each layer, by the layer's name in the network."""
    rank: int
    alpha: float
    targets: tuple[str, ...]
    """Ends of the names of the adapted layers."""
    network: str = files.FIRST
    """Name of the network in the saved adapter."""

    @property
    def is_of_unet(self) -> bool:
        """Whether the adapter belongs to a diffusers UNet."""
        return any(_UNET.match(layer) for layer in self.layers)


def export(
    source: Path,
    form: Format,
    output: Path,
    *,
    bare_alpha: float = files.PEFT_ALPHA,
    base_model: str | None = None,
) -> list[Path]:
    """Write a saved adapter in another format; returns the files or folders.

    A folder has a manifest of SHA-256 sums; a single file has its sum beside it, in ``FILE.sha256``. A
    further denoiser, and in peft's format every other network, has a subfolder of its name.

    Args:
        source: folder of a saved adapter, its hub id, or file of a bare peft state dict.
        form: format to write.
        output: a folder, or the name of a ``.safetensors`` file if the format is a single file.
        bare_alpha: alpha of a bare state dict, which does not contain it.
        base_model: hub id or name of the base model, for peft's settings.

    Raises:
        UserError: there is no adapter, the format has no names for its layers, or it needs more than one
            file.
    """
    as_file = output.suffix == ".safetensors"
    if form == "peft" and as_file:
        raise UserError(f"{output}: peft's format is two files; give a folder")
    source = find_adapter(source)
    parts = [_read(source, name, bare_alpha) for name in files.saved_networks(source)]
    if form == "peft":
        return [_write_peft(part, output / part.network, base_model) for part in parts]
    together = {
        folder: [part for part in parts if _folder_of(part) == folder] for folder in map(_folder_of, parts)
    }
    if as_file and len(together) > 1:
        raise UserError(f"{output}: {source} has the adapters of two denoisers; give a folder")
    return [
        _write(group, form, output if as_file else output / folder, as_file)
        for folder, group in together.items()
    ]


def _folder_of(part: Saved) -> str:
    """Return the folder of a part in formats in which text encoders share the first denoiser's file."""
    return files.FIRST if part.network in files.TEXT_ENCODERS else part.network


def _read(source: Path, network: str, bare_alpha: float) -> Saved:
    shape = files.read_network_shape(source, network, bare_alpha=bare_alpha)
    weights = (files.read_bare(source) if source.is_file() else files.read(source, network))[0]
    layers = {
        key.removesuffix(DOWN): (
            value.contiguous(),
            weights[key.removesuffix(DOWN) + UP].contiguous(),
        )
        for key, value in sorted(weights.items())
        if key.endswith(DOWN)
    }
    return Saved(layers, shape.rank, shape.alpha, shape.target_modules or (), network)


def _write(parts: Sequence[Saved], form: Format, output: Path, as_file: bool) -> Path:
    (output.parent if as_file else output).mkdir(parents=True, exist_ok=True)
    tensors, metadata = for_comfyui(parts) if form == "comfyui" else _for_diffusers(parts)
    path = output if as_file else output / (_COMFYUI_NAME if form == "comfyui" else LORA_WEIGHT_NAME_SAFE)
    save_file(tensors, path, metadata={"format": "pt"} | metadata)
    if as_file:
        give_ordinary_mode([path])
        write_checksum(path)
    else:
        files.complete(output, path.name)
    return path


def export_for_hub(source: Path, output: Path, *, base_model: str) -> bool:
    """Write a saved adapter in peft's format and, if it was saved in diffusers' format, in this one too.

    Args:
        base_model: hub id or name, which peft's settings keep as ``base_model_name_or_path``.

    Returns:
        Whether it is in diffusers' format, which ``pipe.load_lora_weights`` reads.

    Raises:
        UserError: there is no adapter, or it is damaged.
    """
    folders = export(source, "peft", output, base_model=base_model)
    if not files.is_for_diffusers(source):
        return False
    for file in export(source, "diffusers", output):
        own = (files.WEIGHTS, files.SETTINGS) if file.parent in folders else ()
        files.complete(file.parent, *own, file.name)
    return True


def _write_peft(saved: Saved, folder: Path, base_model: str | None) -> Path:
    settings = LoraConfig(
        r=saved.rank,
        lora_alpha=saved.alpha,  # type: ignore[arg-type]
        target_modules=list(saved.targets),
        base_model_name_or_path=base_model,
    )
    files.write_peft(_peft_keys(saved), settings, folder)
    return folder


def _peft_keys(saved: Saved) -> dict[str, Tensor]:
    downs = {f"{layer}.lora_A.weight": down for layer, (down, _) in saved.layers.items()}
    return downs | {f"{layer}.lora_B.weight": up for layer, (_, up) in saved.layers.items()}


def _for_diffusers(parts: Sequence[Saved]) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors, settings = dict[str, Tensor](), dict[str, object]()
    for part in parts:
        name = "unet" if part.is_of_unet else "transformer"
        if part.network in files.TEXT_ENCODERS:
            name = part.network
        own = {"r": part.rank, "lora_alpha": part.alpha, "target_modules": list(part.targets)}
        settings |= {f"{name}.{key}": value for key, value in own.items()}
        tensors |= {f"{name}.{key}": value for key, value in _peft_keys(part).items()}
    return tensors, {LORA_ADAPTER_METADATA_KEY: json.dumps(settings, indent=2, sort_keys=True)}


def for_comfyui(parts: Sequence[Saved]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of an adapter's parts by ComfyUI's keys, and empty metadata.

    Alpha is one of the tensors; the rank is in their shapes.

    Raises:
        UserError: the layers of ComfyUI's network do not correspond to the adapter's one by one.
    """
    tensors = dict[str, Tensor]()
    for part in parts:
        is_kohya = part.is_of_unet or part.network in files.TEXT_ENCODERS
        a, b = ("lora_down", "lora_up") if is_kohya else ("lora_A", "lora_B")
        for layer, (down, up) in part.layers.items():
            stem = _comfyui_stem(part, layer)
            tensors |= {
                f"{stem}.{a}.weight": down,
                f"{stem}.{b}.weight": up,
                f"{stem}.alpha": torch.tensor(float(part.alpha)),
            }
    return tensors, {}


def _comfyui_stem(saved: Saved, layer: str) -> str:
    if saved.network in files.TEXT_ENCODERS:  # transformers 5 dropped the first part of the names
        own = f"text_model.{layer.removeprefix('text_model.')}"
        return f"{_COMFYUI_TEXT[saved.network]}_{own.replace('.', '_')}"
    if saved.is_of_unet:
        return f"lora_unet_{comfyui_unet.name_of(layer, saved.layers).replace('.', '_')}"
    for old, new in _comfyui_renames(saved).items():
        layer = re.sub(old, new, layer)
    return f"diffusion_model.{layer}"


def _comfyui_renames(saved: Saved) -> dict[str, str]:
    if any(layer.startswith("blocks.") for layer in saved.layers):
        return _WAN
    if any(re.match(r"transformer_blocks\.\d+\.attn2\.", layer) for layer in saved.layers):
        return _LTX
    raise UserError(
        f"ComfyUI's names for layers like {next(iter(saved.layers))} are not known: only adapters of Wan, "
        "LTX-Video and diffusers' UNets can be exported to it; choose --format diffusers or peft"
    )


def merge(network: nn.Module) -> None:
    """Add a loaded adapter's update to the weights, in their own dtype, and remove the adapter."""
    for name, layer in list(network.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge(safe_merge=True)  # type: ignore[operator]
            parent, _, last = name.rpartition(".")
            setattr(network.get_submodule(parent), last, layer.get_base_layer())
    delattr(network, "peft_config")
