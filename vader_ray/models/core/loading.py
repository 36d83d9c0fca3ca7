"""Loading diffusers pipelines, with one clear sentence for each way in which it can fail."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from vader_ray.config import ModelConfig, SamplingConfig, locate
from vader_ray.models.core.meta_pipeline import load_meta_pipeline


def load_pipeline(
    kind: type[DiffusionPipeline], model: ModelConfig, sampling: SamplingConfig, device: torch.device
) -> Any:
    """A pipeline with denoiser and text encoder in ``precision`` and the autoencoder in ``decoder_precision``.

    On the meta device it has no weights, and only its configuration is read.

    Raises:
        ValueError: the weights cannot be reached, are damaged or belong to another kind of model.
    """
    source = locate(model.weights)
    dtype = getattr(torch, model.precision)
    with _explained(source), _quiet():
        pipe = (
            load_meta_pipeline(kind, source, dtype)
            if device.type == "meta"
            else kind.from_pretrained(source, dtype=dtype)
        )
    if sampling.scheduler:
        pipe.scheduler = _scheduler(sampling.scheduler).from_config(pipe.scheduler.config)
    with _quiet():
        pipe.vae.to(getattr(torch, model.decoder_precision))
    return pipe.to(device)


def fetch_pipeline(model: ModelConfig) -> Path:
    """The folder of a pipeline; a hub's is downloaded into its cache.

    Raises:
        ValueError: it cannot be reached.
    """
    source = locate(model.weights)
    if Path(source).exists():
        return Path(source)
    with _explained(source):
        return Path(DiffusionPipeline.download(source))


def published_class(model: ModelConfig, *kinds: type[DiffusionPipeline]) -> type[DiffusionPipeline]:
    """Which of several pipelines the weights were published for, by their model_index.json.

    Raises:
        ValueError: the weights cannot be reached or are those of another pipeline.
    """
    source = locate(model.weights)
    with _explained(source):
        name = str(DiffusionPipeline.load_config(source)["_class_name"])
    for kind in kinds:
        if kind.__name__ == name:
            return kind
    expected = " or ".join(kind.__name__ for kind in kinds)
    raise ValueError(f"model.weights: {source} is a {name}; model.family={model.family} takes {expected}")


def _scheduler(name: str) -> Any:
    scheduler = getattr(diffusers, name, None)
    if not name.endswith("Scheduler") or scheduler is None:
        raise ValueError(f"sampling.scheduler: diffusers {diffusers.__version__} has no scheduler {name!r}")
    return scheduler


@contextlib.contextmanager
def _explained(source: str) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise ValueError(
            f"model.weights: a safetensors file in {source} is damaged ({error}); fetch it again"
        ) from None
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        if isinstance(error, OSError) and not Path(source).exists():
            raise ValueError(
                f"model.weights: {source!r} is neither a local folder nor in the Hugging Face cache, "
                f"and the hub did not give it; run `hf download {source}` where there is internet (to count a step, "
                "`--exclude '*.safetensors' '*.bin'` leaves the weights there), or give a local folder"
            ) from error
        raise ValueError(
            f"model.weights: {source} cannot be loaded as this family's pipeline: {_one_line(error)}"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' progress bars and remarks about deprecated classes that still work."""
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
