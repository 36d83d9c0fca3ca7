"""LoRA adapters by peft: float32 master weights, activations in the denoiser's own dtype."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional

from vader_ray.config import AdapterConfig
from vader_ray.models.adapters.files import rank_of, read, read_bare, read_shape, write_peft


class _CastLinear(nn.Linear):
    """Casts its small float32 weight to the activations' dtype, where peft would cast the large activations up."""

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = functional.linear(input, self.weight.to(input.dtype))
        return output


class _CastConv2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self._conv_forward(input, self.weight.to(input.dtype), None)
        return output


class _CastConv3d(nn.Conv3d):
    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self._conv_forward(input, self.weight.to(input.dtype), None)
        return output


_CASTING: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: _CastLinear,
    nn.Conv2d: _CastConv2d,
    nn.Conv3d: _CastConv3d,
}


def inject(denoiser: nn.Module, adapter: AdapterConfig, targets: Sequence[str], seed: int) -> None:
    """Freeze the denoiser and add a LoRA to every layer whose name ends in one of the targets, in the place of an earlier one.

    Raises:
        ValueError: no layer has such a name, or one is of a kind that cannot carry an adapter here.
    """
    remove(denoiser)
    denoiser.requires_grad_(False)
    settings = LoraConfig(r=adapter.rank, lora_alpha=adapter.alpha, target_modules=list(targets))  # type: ignore[arg-type]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(settings, denoiser)
        except ValueError as error:
            raise ValueError(
                f"adapter.target_modules {list(targets)} do not fit this denoiser: {error}"
            ) from None
    for name, layer in denoiser.named_modules():
        if isinstance(layer, LoraLayer):
            _keep_activation_dtype(layer, name)


def remove(denoiser: nn.Module) -> None:
    """Put the pretrained layers back where an adapter has been added."""
    for name, layer in list(denoiser.named_modules()):
        if isinstance(layer, LoraLayer):
            denoiser.set_submodule(name, layer.base_layer)
    if hasattr(denoiser, "peft_config"):
        del denoiser.peft_config


def _keep_activation_dtype(layer: LoraLayer, name: str) -> None:
    layer.cast_input_dtype_enabled = False
    for matrices in (layer.lora_A, layer.lora_B):
        for matrix in matrices.values():
            if type(matrix) not in _CASTING:
                kind = type(matrix).__name__
                raise ValueError(
                    f"adapter.target_modules: {name} is a {kind}; only Linear, Conv2d and Conv3d can be adapted"
                )
            matrix.__class__ = _CASTING[type(matrix)]
            matrix.to(torch.promote_types(matrix.weight.dtype, torch.float32))


@contextmanager
def disabled(denoisers: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, the denoisers are the pretrained ones."""
    layers = [layer for denoiser in denoisers for layer in denoiser.modules() if isinstance(layer, LoraLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def parameters(denoiser: nn.Module) -> list[nn.Parameter]:
    """The adapter's parameters, in the module's order."""
    return [parameter for parameter in denoiser.parameters() if parameter.requires_grad]


def save_for_diffusers(denoiser: nn.Module, folder: Path, pipeline: Any, name: str) -> None:
    """Write what ``pipe.load_lora_weights(folder)`` reads, with rank and alpha inside; ``name`` is its key prefix."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: value.contiguous() for key, value in get_peft_model_state_dict(denoiser).items()}
    mine: LoraConfig = denoiser.peft_config["default"]  # type: ignore[index,assignment]
    settings = {
        "r": mine.r,
        "lora_alpha": mine.lora_alpha,
        "target_modules": sorted(mine.target_modules or ()),
    }
    pipeline.save_lora_weights(
        folder, **{f"{name}_lora_layers": weights, f"{name}_lora_adapter_metadata": settings}
    )


def folders(folder: Path, names: Iterable[str]) -> list[Path]:
    """Where the adapter of each denoiser lies: the first in the folder itself, every other in one of its name."""
    return [folder / name if place else folder for place, name in enumerate(names)]


def load_into(pipe: Any, folder: str | Path) -> None:
    """Add a saved adapter to the denoisers of any diffusers pipeline, ready to sample.

    The public ``vader_ray.load_adapter(pipe, folder)``, for pipelines whose ``load_lora_weights`` does not work.

    Raises:
        ValueError: the folder holds no adapter, a damaged one, or one of another model.
    """
    found = [
        name for name in ("unet", "transformer", "transformer_2") if getattr(pipe, name, None) is not None
    ]
    for name, place in zip(found, folders(Path(folder), found), strict=True):
        denoiser: nn.Module = getattr(pipe, name)
        shape = read_shape(place)
        inject(denoiser, shape, shape.target_modules or (), seed=0)
        load(denoiser, place)
        denoiser.requires_grad_(False)


def save(denoiser: nn.Module, folder: Path) -> None:
    """Write peft's two files; ``peft.PeftModel.from_pretrained(denoiser, folder)`` reads them."""
    write_peft(get_peft_model_state_dict(denoiser), denoiser.peft_config["default"], folder)  # type: ignore[index,arg-type]


def load(denoiser: nn.Module, source: Path) -> None:
    """Read what `save` wrote, or a file of a bare peft state dict, into an adapter of the same shape.

    Raises:
        ValueError: the source holds no adapter, a damaged one, or one of another model, rank or alpha.
    """
    expected = {key: value.shape for key, value in get_peft_model_state_dict(denoiser).items()}
    mine: LoraConfig = denoiser.peft_config["default"]  # type: ignore[index,assignment]
    if source.is_file():
        weights = _unwrapped(read_bare(source), next(iter(expected)))
        rank, alpha = rank_of(weights, source), mine.lora_alpha
    else:
        weights, settings = read(source)
        rank, alpha = settings["r"], settings["lora_alpha"]
    if (rank, alpha) != (mine.r, mine.lora_alpha):
        raise ValueError(
            f"the adapter in {source} has rank {rank} and alpha {alpha}, "
            f"this recipe asks for rank {mine.r} and alpha {mine.lora_alpha}; set adapter.rank and adapter.alpha to the file's"
        )
    if (found := {key: value.shape for key, value in weights.items()}) != expected:
        different = sorted(
            key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)
        )
        raise ValueError(
            f"the adapter in {source} was made for another model: {len(different)} tensors differ, the first is {different[0]}"
        )
    set_peft_model_state_dict(denoiser, weights)


def _unwrapped(weights: dict[str, Tensor], known: str) -> dict[str, Tensor]:
    """The weights by names of the denoiser: without what peft and the modules around it put in front of a known name."""
    wrappers = [name.removesuffix(known) for name in weights if name.endswith(known)]
    return {name.removeprefix(min(wrappers, key=len, default="")): value for name, value in weights.items()}
