"""LoRA adapters by peft, with float32 master weights and activations in the denoiser's dtype."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional

from vader_ray.config import AdapterConfig
from vader_ray.errors import UserError
from vader_ray.hub import find_adapter
from vader_ray.models.adapters.files import (
    DENOISERS,
    FIRST,
    TEXT_ENCODERS,
    complete,
    read,
    read_bare,
    read_network_shape,
    saved_networks,
    write_peft,
)


class _CastLinear(nn.Linear):
    """Linear layer that casts its small float32 weight to the dtype of the large activations.

    peft would cast the activations to float32.
    """

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = functional.linear(input, self.weight.to(input.dtype))
        return output


class _CastConv2d(nn.Conv2d):
    """The same for 2D convolutions."""

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self._conv_forward(input, self.weight.to(input.dtype), None)
        return output


class _CastConv3d(nn.Conv3d):
    """The same for 3D convolutions."""

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self._conv_forward(input, self.weight.to(input.dtype), None)
        return output


_CASTING: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: _CastLinear,
    nn.Conv2d: _CastConv2d,
    nn.Conv3d: _CastConv3d,
}


def inject(network: nn.Module, adapter: AdapterConfig, targets: Sequence[str], seed: int) -> None:
    """Freeze a denoiser or text encoder and add a LoRA to every target layer, replacing an earlier LoRA.

    Targets are ends of layer names.

    Raises:
        UserError: no layer has such a name, or one is neither linear nor a convolution.
    """
    remove(network)
    network.requires_grad_(False)
    settings = LoraConfig(r=adapter.rank, lora_alpha=adapter.alpha, target_modules=list(targets))  # type: ignore[arg-type]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(settings, network)
        except ValueError as error:
            raise UserError(
                f"adapter.target_modules {list(targets)} do not fit this denoiser: {error}"
            ) from None
    for name, layer in network.named_modules():
        if isinstance(layer, LoraLayer):
            _keep_activation_dtype(layer, name)


def remove(network: nn.Module) -> None:
    """Replace every adapted layer by its pretrained layer."""
    for name, layer in list(network.named_modules()):
        if isinstance(layer, LoraLayer):
            network.set_submodule(name, layer.base_layer)
    if hasattr(network, "peft_config"):
        del network.peft_config


def merge(network: nn.Module) -> None:
    """Add the adapter's update to the pretrained weights, and remove the adapter."""
    for layer in network.modules():
        if isinstance(layer, LoraLayer):
            layer.merge()  # type: ignore[operator]
    remove(network)


def _keep_activation_dtype(layer: LoraLayer, name: str) -> None:
    layer.cast_input_dtype_enabled = False
    for matrices in (layer.lora_A, layer.lora_B):
        for matrix in matrices.values():
            if type(matrix) not in _CASTING:
                kind = type(matrix).__name__
                raise UserError(
                    f"adapter.target_modules: {name} is a {kind}; only Linear, Conv2d and Conv3d can be "
                    "adapted"
                )
            matrix.__class__ = _CASTING[type(matrix)]
            matrix.to(torch.promote_types(matrix.weight.dtype, torch.float32))


@contextmanager
def disabled(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Switch the adapters off inside a ``with`` block: the networks are the pretrained ones there."""
    layers = [layer for network in networks for layer in network.modules() if isinstance(layer, LoraLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


@contextmanager
def scaled(network: nn.Module, factor: float) -> Iterator[None]:
    """Multiply the adapter's update by a factor inside a ``with`` block."""
    layers = [layer for layer in network.modules() if isinstance(layer, LoraLayer)]
    before = [layer.scaling for layer in layers]
    for layer in layers:
        layer.scaling = {name: value * factor for name, value in layer.scaling.items()}
    try:
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling = scaling


def parameters(network: nn.Module) -> list[nn.Parameter]:
    """Return the adapter's parameters in the order of the module."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def save_for_diffusers(networks: Mapping[str, nn.Module], folder: Path, pipeline: Any, prefix: str) -> None:
    """Write files that ``load_lora_weights`` of a pipeline reads, with rank and alpha in their metadata.

    The first denoiser and the text encoders share one file; each other denoiser has one in a subfolder.

    Args:
        networks: those with an adapter, by their names in a saved adapter.
        folder: is created.
        pipeline: class of the pipeline, which writes the files.
        prefix: of the keys of denoisers, ``unet`` or ``transformer``.
    """
    for part in (FIRST, *(name for name in networks if name not in (FIRST, *TEXT_ENCODERS))):
        together = (FIRST, *TEXT_ENCODERS) if part == FIRST else (part,)
        if arguments := {
            f"{name if name in TEXT_ENCODERS else prefix}_lora_{key}": value
            for name, network in networks.items()
            if name in together
            for key, value in _layers_and_settings(network).items()
        }:
            (folder / part).mkdir(parents=True, exist_ok=True)
            pipeline.save_lora_weights(folder / part, **arguments)
            complete(folder / part, LORA_WEIGHT_NAME_SAFE)


def _layers_and_settings(network: nn.Module) -> dict[str, Any]:
    """Return weights and settings of an adapter by the ends of diffusers' names for them."""
    mine: LoraConfig = network.peft_config["default"]  # type: ignore[index,assignment]
    targets = sorted(mine.target_modules or ())
    return {
        "layers": {key: value.contiguous() for key, value in get_peft_model_state_dict(network).items()},
        "adapter_metadata": {"r": mine.r, "lora_alpha": mine.lora_alpha, "target_modules": targets},
    }


def load_into(pipe: Any, folder: str | Path) -> list[str]:
    """Add a saved adapter to the networks of any diffusers pipeline; it is frozen and ready for sampling.

    This is the public ``vader_ray.load_adapter(pipe, folder)``. It works for every pipeline, also for those
    without ``load_lora_weights``.

    Args:
        pipe: a loaded diffusers pipeline with the networks that the adapter was trained on.
        folder: folder of a saved adapter, or its hub id ``owner/name``.

    Returns:
        Names of the networks, as attributes of the pipeline.

    Raises:
        UserError: the folder has no adapter, a damaged one, or one of another model.
    """
    source, found = find_adapter(folder), list[str]()
    first = next((name for name in DENOISERS if getattr(pipe, name, None) is not None), "denoiser")
    for name in saved_networks(source):
        network: nn.Module | None = getattr(pipe, name or first, None)
        if network is None:
            raise UserError(
                f"the adapter in {source} has a part for the network {name or first}, which this "
                f"{type(pipe).__name__} does not have"
            )
        shape = read_network_shape(source, name)
        inject(network, shape, shape.target_modules or (), seed=0)
        load(network, source, name)
        network.requires_grad_(False)
        found.append(name or first)
    return found


def refuse_foreign_adapters(pipe: Any, names: Iterable[str]) -> None:
    """Check that no network of a pipeline has an adapter of another program, which a new one would replace.

    Raises:
        UserError: one has.
    """
    for name in names:
        network = getattr(pipe, name, None)
        layers = network.modules() if network is not None else ()
        if any(isinstance(layer, LoraLayer) and not _is_ours(layer) for layer in layers):
            raise UserError(
                f"the pipeline's {name} already has an adapter, which the new one would replace; merge it "
                "into the weights by pipe.fuse_lora() and pipe.unload_lora_weights(), or remove it by "
                "pipe.unload_lora_weights()"
            )


def _is_ours(layer: LoraLayer) -> bool:
    return all(type(matrix) in _CASTING.values() for matrix in layer.lora_A.values())


def save(network: nn.Module, folder: Path) -> None:
    """Write peft's two files; ``peft.PeftModel.from_pretrained(network, folder)`` reads them."""
    write_peft(get_peft_model_state_dict(network), network.peft_config["default"], folder)  # type: ignore[index,arg-type]


def load(network: nn.Module, source: Path, name: str = FIRST) -> None:
    """Read one network's part of a saved adapter, or a file with a bare peft state dict.

    Args:
        network: with an adapter of the same shape.
        source: folder or file.
        name: one of its `saved_networks`.

    Raises:
        UserError: the source has no adapter, a damaged one, or one of another model, rank or alpha.
    """
    expected = {key: value.shape for key, value in get_peft_model_state_dict(network).items()}
    mine: LoraConfig = network.peft_config["default"]  # type: ignore[index,assignment]
    if source.is_file():
        (weights, rank), alpha = read_bare(source), mine.lora_alpha
    else:
        weights, shape = read(source, name)
        rank, alpha = shape.rank, shape.alpha
    if (rank, alpha) != (mine.r, mine.lora_alpha):
        raise UserError(
            f"the adapter in {source} has rank {rank} and alpha {alpha}, the model's has rank {mine.r} and "
            f"alpha {mine.lora_alpha}; set adapter.rank and adapter.alpha to the file's"
        )
    if (found := {key: value.shape for key, value in weights.items()}) != expected:
        different = sorted(
            key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)
        )
        raise UserError(
            f"the adapter in {source} belongs to another model: {len(different)} tensors differ, the first "
            f"is {different[0]}"
        )
    set_peft_model_state_dict(network, weights)
