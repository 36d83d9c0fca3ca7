"""Load diffusers pipelines, with one message for each way in which this can fail."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from vader_ray.config import ModelConfig, SamplingConfig, locate
from vader_ray.errors import UserError, did_you_mean
from vader_ray.models.core.merged_adapters import fetch_adapter, merge_adapters
from vader_ray.models.core.meta_pipeline import load_meta_pipeline
from vader_ray.models.core.motion_adapter import finish_animation, load_motion_adapter
from vader_ray.models.core.pipeline_folder import check_pipeline_folder, is_component
from vader_ray.models.core.quantization import quantize_denoisers


def load_pipeline(
    classes: Sequence[str], model: ModelConfig, sampling: SamplingConfig, device: torch.device
) -> Any:
    """Load a pipeline, each network in the recipe's precision.

    The autoencoder is in ``decoder_precision``, the other networks are in ``precision``.

    On the meta device it has no weights; only its configuration is read.

    Args:
        classes: names of the family's pipeline classes in diffusers; of several, the weights'
            model_index.json names one.
        model: weights and precision.
        sampling: the scheduler, if it is not the checkpoint's own.
        device: of all networks.

    Raises:
        UserError: the weights cannot be found, are damaged or belong to another kind of model.
    """
    source = locate(model.weights)
    check_pipeline_folder(source)
    kind = _pipeline_class(
        classes[0] if len(classes) == 1 else _class_of_family(source, classes, model.family)
    )
    dtype = getattr(torch, model.precision)
    motion = None if model.motion_adapter is None else locate(model.motion_adapter)
    if motion is not None and "motion_adapter" not in inspect.signature(kind).parameters:
        raise UserError(f"model.motion_adapter: {kind.__name__} has no motion modules; leave it out")
    with explained(source), quiet():
        pipe = (
            load_meta_pipeline(kind, source, dtype, motion)
            if device.type == "meta"
            else kind.from_pretrained(source, dtype=dtype, **_extra_parts(motion, dtype))
        )
    if motion is not None and device.type != "meta":
        finish_animation(pipe)
    if sampling.scheduler:
        pipe.scheduler = find_scheduler(sampling.scheduler).from_config(pipe.scheduler.config)
    with quiet():
        pipe.vae.to(getattr(torch, model.decoder_precision))
    if device.type != "meta":  # merging changes no sizes
        with quiet():
            merge_adapters(pipe, model.loras)
    quantize_denoisers(pipe, model.quantization)  # before it is moved: a GPU never holds the whole weights
    return pipe.to(device)


def _extra_parts(motion_adapter: str | None, dtype: torch.dtype) -> dict[str, Any]:
    """Return the components of a pipeline that its weights do not have."""
    if motion_adapter is None:
        return {}
    with explained(motion_adapter, "model.motion_adapter"):
        return {"motion_adapter": load_motion_adapter(motion_adapter, dtype)}


def fetch_pipeline(model: ModelConfig) -> Path:
    """Return the folder of a pipeline; that of a hub id is downloaded into the Hugging Face cache.

    So are the files of ``model.loras``.

    Raises:
        UserError: it cannot be downloaded.
    """
    for adapter in model.loras:
        fetch_adapter(adapter)
    source = locate(model.weights)
    if model.motion_adapter is not None:
        _extra_parts(locate(model.motion_adapter), torch.float32)
    if Path(source).exists():
        return Path(source)
    with explained(source):
        return Path(DiffusionPipeline.download(source))


def published_class(source: str) -> str:
    """Return the name of the pipeline class of weights, by their ``model_index.json``.

    Args:
        source: a folder in diffusers' format, or a hub id.

    Raises:
        UserError: there is no such file, or it cannot be downloaded.
    """
    return str(read_index(source)["_class_name"])


def components_of(source: str) -> list[str]:
    """Return the names of the components of weights that are not empty, by their ``model_index.json``.

    Raises:
        UserError: as `published_class`.
    """
    return [name for name, entry in read_index(source).items() if is_component(name, entry) and any(entry)]


def read_index(source: str) -> dict[str, Any]:
    """Return the ``model_index.json`` of weights: their components and settings of the pipeline.

    Args:
        source: a folder in diffusers' format, or a hub id.

    Raises:
        UserError: there is no such file, or it cannot be downloaded.
    """
    check_pipeline_folder(source)
    with explained(source):
        return dict(DiffusionPipeline.load_config(source))


def published_scheduler(source: str, sampling: SamplingConfig) -> Any:
    """Return the scheduler of weights with the timesteps of a sampling; reads its configuration alone.

    Raises:
        UserError: there is no such file, or it cannot be downloaded.
    """
    kind = find_scheduler(read_index(source)["scheduler"][1])
    with explained(source), quiet():
        scheduler = kind.from_pretrained(source, subfolder="scheduler")
        if sampling.scheduler:
            scheduler = find_scheduler(sampling.scheduler).from_config(scheduler.config)
        scheduler.set_timesteps(sampling.num_inference_steps)
    return scheduler


def check_own_parts(
    model: ModelConfig, sampling: SamplingConfig, name: str, scheduler: type, lack: str
) -> None:
    """Check settings of a model whose loader and scheduler are of this package.

    Args:
        model: the recipe's section.
        sampling: the recipe's section.
        name: of the model.
        scheduler: the only one with which it can sample.
        lack: what others do not have.

    Raises:
        UserError: there are adapters to merge, or another scheduler.
    """
    if model.loras:
        raise UserError(f"model.loras: there is no loader of adapters for {name}; leave it out")
    if sampling.scheduler not in (None, scheduler.__name__):
        raise UserError(
            f"sampling.scheduler: {sampling.scheduler} has no {lack}, with which {name} was trained; leave "
            "the setting out"
        )


def _class_of_family(source: str, classes: Sequence[str], family: str) -> str:
    """Return the pipeline class of the weights, which must be one of the family's."""
    name = published_class(source)
    if name not in classes:
        raise UserError(
            f"model.weights: {source} is a {name}; model.family={family} takes {' or '.join(classes)}"
        )
    return name


def _pipeline_class(name: str) -> Any:
    try:
        return getattr(diffusers, name)
    except AttributeError:
        raise UserError(
            f"model.family: diffusers {diffusers.__version__} has no {name}; install diffusers 0.42.1"
        ) from None


def find_scheduler(name: str) -> Any:
    """Return the class of a scheduler by its name.

    Raises:
        UserError: diffusers has no such scheduler.
    """
    known = [known for known in dir(diffusers) if known.endswith("Scheduler")]
    if name not in known:
        raise UserError(
            f"sampling.scheduler: diffusers {diffusers.__version__} has no scheduler {name!r}; "
            f"{did_you_mean(name, known)}give the name of one of its classes"
        )
    return getattr(diffusers, name)


@contextlib.contextmanager
def explained(source: str, setting: str = "model.weights") -> Iterator[None]:
    """Turn the libraries' exceptions into a `UserError` that names the remedy.

    Args:
        source: folder or hub id of what is loaded.
        setting: of the recipe, for the message.
    """
    try:
        yield
    except UserError:
        raise
    except SafetensorError as error:
        raise UserError(
            f"{setting}: a safetensors file in {source} is damaged ({error}); download it again"
        ) from None
    except (
        OSError,
        ValueError,
        TypeError,
        LookupError,
        RuntimeError,
        AttributeError,
        ImportError,
        EOFError,
    ) as error:
        if isinstance(error, OSError) and not Path(source).exists():
            raise UserError(
                f"{setting}: {source!r} is neither a local folder nor in the Hugging Face cache, and it "
                f"could not be downloaded; run `hf download {source}` where there is internet (to count a "
                "step, `--exclude '*.safetensors' '*.bin'` leaves the weights out), or give a local folder"
            ) from error
        raise UserError(
            f"{setting}: {source} cannot be loaded as this family's pipeline: {_one_line(error)}"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the libraries' progress bars and warnings of deprecated classes that still work."""
    verbosity = diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()
    diffusers_logging.set_verbosity(logging.ERROR)
    transformers_logging.set_verbosity(logging.ERROR)
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(verbosity[0])
        transformers_logging.set_verbosity(verbosity[1])
