"""Using a trained adapter in this process: evaluation and generation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from vader_ray import models
from vader_ray.config import ExperimentConfig
from vader_ray.config.auto import without_auto
from vader_ray.training.checkpoint import State
from vader_ray.training.distributed import Group
from vader_ray.training.evaluation import decode_all, evaluate, to_uint8
from vader_ray.training.events import Query
from vader_ray.training.experiment import Experiment, build, encode
from vader_ray.training.media import write_mp4


def evaluate_adapter(config: ExperimentConfig, adapter: Path | None) -> dict[str, float]:
    """The metrics of the held-out videos with a saved adapter, or of the pretrained model.

    Raises:
        ValueError: the adapter is missing, damaged or of another model.
    """
    config = without_auto(_shaped_like(config, adapter))
    experiment = build(config, _device())
    if adapter is not None:
        experiment.model.load_adapter(adapter)
    return evaluate(config, experiment, Group()).metrics


def adopting(
    adapter: Path, costs: Mapping[str, float]
) -> Callable[..., tuple[dict[str, float], tuple[Query, ...]]]:
    """In place of training's steps (`loop.train`), a single one that puts a saved adapter there and adds what it has cost.

    Args:
        costs: by their names in `State`: reward queries, denoiser calls, seconds.
    """

    def train_step(
        config: ExperimentConfig,
        experiment: Experiment,
        optimizer: object,
        group: object,
        state: State,
        wall_seconds: float,
    ) -> tuple[dict[str, float], tuple[Query, ...]]:
        experiment.model.load_adapter(adapter)
        state.step = config.num_steps
        for name, amount in costs.items():
            setattr(state, name, getattr(state, name) + amount)
        return {}, ()

    return train_step


@torch.no_grad()
def generate_video(
    config: ExperimentConfig, prompt: str, adapter: Path | None, seed: int, output: Path
) -> None:
    """Write an mp4 of one prompt.

    Raises:
        ValueError: the adapter is missing, damaged or of another model.
    """
    torch.set_num_threads(config.runtime.num_threads)
    config = _shaped_like(config, adapter)
    model = models.build(
        config.model,
        config.sampling,
        config.adapter,
        seed=0,
        chunk_size=config.runtime.decode_chunk_size,
        device=_device(),
    )
    if adapter is not None:
        model.load_adapter(adapter)
    latents = model.sample(encode(model, [prompt]), [seed])
    output.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(to_uint8(decode_all(model.decoder, latents)[0]), output, config.evaluation.frames_per_second)


def merge_adapter(config: ExperimentConfig, adapter: Path, output: Path) -> list[Path]:
    """Write the recipe's denoisers with a saved adapter folded in, in ``model.precision``; the folders of the networks.

    Raises:
        ValueError: the adapter is missing, damaged or of another model, or its denoiser is not the library's.
    """
    config = _shaped_like(config, adapter)
    model = models.build(
        config.model, config.sampling, config.adapter, seed=0, chunk_size=1, device=torch.device("cpu")
    )
    model.load_adapter(adapter)
    return list(model.save_merged(output))


def _shaped_like(config: ExperimentConfig, adapter: Path | None) -> ExperimentConfig:
    """The recipe with the rank, alpha and target modules that a saved adapter was trained with."""
    if adapter is None:
        return config
    return config.model_copy(
        update={"adapter": models.adapter_shape(adapter, bare_alpha=config.adapter.alpha)}
    )


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
