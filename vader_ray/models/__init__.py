"""Model families, their adapters and the wrapper for loaded pipelines.

``vader_ray/models/wan.py`` is the family ``wan``; its class is ``WanModel``. Families and adapters are
imported when they are first used, because diffusers and peft take seconds to import.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from vader_ray.config import (
    ActivationCheckpointing,
    AdapterConfig,
    ExperimentConfig,
    ModelConfig,
    RuntimeConfig,
    SamplingConfig,
    locate,
)
from vader_ray.errors import UserError
from vader_ray.plugins import AUTO_FAMILY, FAMILIES

if TYPE_CHECKING:
    from vader_ray.models.adapters.export import Format as AdapterFormat
    from vader_ray.models.adapters.export import export as export_adapter
    from vader_ray.models.adapters.export import export_for_hub as export_for_hub
    from vader_ray.models.adapters.files import read_shape as adapter_shape
    from vader_ray.models.adapters.files import saved_networks as adapter_networks
    from vader_ray.models.adapters.lora import load_into as load_adapter
    from vader_ray.models.adapters.merge import mix as mix_adapters
    from vader_ray.models.base import VideoModel
    from vader_ray.models.core.loading import find_scheduler as check_scheduler

_IMPORTED_LATER = {
    "AdapterFormat": ("adapters.export", "Format"),
    "VideoModel": ("base", "VideoModel"),
    "adapter_networks": ("adapters.files", "saved_networks"),
    "adapter_shape": ("adapters.files", "read_shape"),
    "check_scheduler": ("core.loading", "find_scheduler"),
    "export_adapter": ("adapters.export", "export"),
    "export_for_hub": ("adapters.export", "export_for_hub"),
    "load_adapter": ("adapters.lora", "load_into"),
    "mix_adapters": ("adapters.merge", "mix"),
}
"""Name of this package → module and name of its definition."""

__all__ = [
    "AdapterFormat",
    "VideoModel",
    "adapter_networks",
    "adapter_shape",
    "build",
    "check_clips",
    "check_networks",
    "check_parallel",
    "check_scheduler",
    "export_adapter",
    "export_for_hub",
    "fetch",
    "find_family",
    "load_adapter",
    "mix_adapters",
    "names",
    "resolve",
]


def __getattr__(name: str) -> Any:
    if name not in _IMPORTED_LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, original = _IMPORTED_LATER[name]
    return getattr(import_module(f"{__name__}.{module}"), original)


def names() -> list[str]:
    """Return the model families of this package."""
    return FAMILIES.names()


def resolve(family: str) -> Any:
    """Return the class of a family: a name of `names`, ``my.module`` or ``my.module.ClassName``.

    Raises:
        UserError: there is no such family; the message gives the rule and the names.
    """
    return FAMILIES.resolve(family)


def find_family(model: ModelConfig) -> str:
    """Return the name of a model's family; for ``auto``, by the pipeline's class in the weights' index.

    A model with ``motion_adapter`` is an AnimateDiff.

    Args:
        model: weights, a folder in diffusers' format or a hub id, whose index is downloaded for ``auto``.

    Raises:
        UserError: there is no such family, or none has the pipeline's class.
    """
    if model.family != AUTO_FAMILY:
        if model.family not in names():
            resolve(model.family)
        return model.family
    if model.motion_adapter is not None:
        return "animatediff"
    from vader_ray.models.core.loading import published_class

    source = locate(model.weights)
    if Path(source).is_file():
        raise UserError(
            f"model.weights: {source} is one file, which does not tell its model; set model.family "
            f"({', '.join(names())})"
        )
    found = family_of_pipeline([name := published_class(source)])
    if found is None:
        raise UserError(
            f"model.weights: {source} is a {name}, of which no model family is known; set model.family to a "
            "family of your own, or give weights of one of these pipelines: " + ", ".join(pipelines())
        )
    return found


def family_of_pipeline(class_names: Iterable[str]) -> str | None:
    """Return the family that has the first known pipeline class of these names; None if none is known."""
    found = pipelines()
    return next((found[name] for name in class_names if name in found), None)


def pipelines() -> dict[str, str]:
    """Return the family of each known pipeline class, by the name of the class; imports no family."""
    known = {family: FAMILIES.read(family).attributes["pipeline_classes"] for family in names()}
    return {str(name): family for family, classes in known.items() for name in classes}  # type: ignore[union-attr]


def check_parallel(family: str, runtime: RuntimeConfig) -> None:
    """Check that several workers can compute a video of a family together, without loading weights.

    Raises:
        UserError: they cannot; the message names the setting.
    """
    if runtime.context_parallel > 1 and not resolve(family).splits_tokens:
        raise UserError(
            f"runtime.context_parallel={runtime.context_parallel}: diffusers cannot divide the tokens of "
            f"model.family={family}; set it to 1, or choose wan or ltx"
        )
    if not runtime.guidance_parallel:
        return
    found = resolve(family)
    if not found.no_guidance_kwargs:
        raise UserError(
            f"runtime.guidance_parallel=True: in model.family={family} guidance is an input of the denoiser "
            "and not a second branch; set it to False"
        )
    if not found.splits_guidance:
        raise UserError(
            f"runtime.guidance_parallel=True: model.family={family} makes sound, or its latents have their "
            "channels last, and two workers cannot share its guidance; set it to False"
        )


def check_clips(family: str, model: ModelConfig, sampling: SamplingConfig) -> None:
    """Check that a model can continue videos from images, if ``sampling.num_clips`` asks for it.

    Loads no weights. Where a family also makes videos from text, the index of the weights has the class of
    their pipeline; that of a hub id is downloaded.

    Raises:
        UserError: it makes no videos from images, or changes images in a way without gradient.
    """
    if sampling.num_clips == 1:
        return
    found = resolve(family)
    kinds, from_images = found.pipeline_classes, found.image_pipeline_classes
    name = kinds[0]
    if 0 < len(from_images) < len(kinds):
        from vader_ray.models.core.loading import published_class

        name = published_class(locate(model.weights))
    found.check_continues(name, takes_images=name in from_images)


def check_networks(family: str, config: ExperimentConfig) -> list[str]:
    """Check the networks that a recipe's adapter is put on; return the denoiser of each denoising step.

    No weights are read. Without ``adapter.networks`` all is well, and the result is empty.

    Raises:
        UserError: the pipeline has no such network, or its index cannot be read or downloaded.
    """
    if config.adapter.networks is None:
        return []
    from vader_ray.models.base import check_networks as check

    kind = resolve(family)
    check(config.adapter.networks, kind.networks_of(config.model), f"model.family={family}")
    found: list[str] = kind.denoisers_of_steps(config.model, config.sampling)
    return found


def fetch(model: ModelConfig) -> str:
    """Return the folder or file of the model's weights; those of a hub id are downloaded first.

    Raises:
        UserError: there is no such family, or the weights cannot be downloaded.
    """
    return str(resolve(find_family(model)).fetch(model))


def build(  # noqa: PLR0913
    model: ModelConfig,
    sampling: SamplingConfig,
    adapter: AdapterConfig | None,
    *,
    seed: int,
    chunk_size: int,
    device: torch.device,
    activation_checkpointing: ActivationCheckpointing = "none",
    compile_blocks: bool = False,
    mesh: DeviceMesh | None = None,
    offload_weights: bool = False,
    video_mesh: DeviceMesh | None = None,
) -> Any:
    """Load a pretrained model to a device and add a fresh adapter.

    Args:
        model: family, weights and precision.
        sampling: size of the videos, number of denoising steps, guidance.
        adapter: rank, alpha and target modules; None for no adapter.
        seed: of the adapter's initial values.
        chunk_size: frames that autoencoders of single frames decode at once.
        device: of all networks; on the meta device they have no weights.
        activation_checkpointing: which activations are recomputed in the backward pass.
        compile_blocks: compile the denoiser's blocks.
        mesh: workers over which the frozen weights are divided, among them this one; None divides nothing,
            and the whole model is loaded to the device.
        offload_weights: with a mesh, keep this worker's share of the weights in host memory.
        video_mesh: all workers of the run, some of which compute the same videos together
            (`vader_ray.types.VIDEO_MESH`); None computes every video on one worker.

    Raises:
        UserError: the weights cannot be loaded, or the model does not support a setting.
    """
    first = device if mesh is None else torch.device("cpu")
    built = resolve(find_family(model)).load(model, sampling, chunk_size=chunk_size, device=first)
    if adapter is not None:
        built.add_adapter(adapter, seed)
    built.apply_memory_optimizations(activation_checkpointing, compile_blocks=compile_blocks)
    if video_mesh is not None:
        built.compute_with(video_mesh)
    if mesh is not None:
        built.shard(mesh, device, offload=offload_weights)
    return built
