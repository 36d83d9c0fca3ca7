"""Use of a trained adapter in this process: evaluation, generation, merging."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from vader_ray import models
from vader_ray.config import ExperimentConfig
from vader_ray.config.auto import without_auto
from vader_ray.training.checkpoint import State
from vader_ray.training.distributed import WorkerGroup
from vader_ray.training.evaluation import decode_all, evaluate, to_uint8
from vader_ray.training.events import RewardQuery
from vader_ray.training.experiment import Experiment, build, encode
from vader_ray.training.media import write_mp4


def evaluate_adapter(config: ExperimentConfig, adapter: Path | None) -> dict[str, float]:
    """Evaluate the held-out videos with a saved adapter, or of the pretrained model; return the means.

    Metrics that compare with the base model's videos are left out.

    Raises:
        ValueError: the adapter is missing, damaged or of another model.
    """
    config = without_auto(_shaped_like(config, adapter))
    experiment = build(config, _device())
    if adapter is not None:
        experiment.model.load_adapter(adapter)
    return evaluate(config, experiment, WorkerGroup()).metrics


def adopting(
    adapter: Path, costs: Mapping[str, float]
) -> Callable[..., tuple[dict[str, float], tuple[RewardQuery, ...]]]:
    """Return a `train_step` for `loop.train` that loads a saved adapter and adds its cost to the state.

    Args:
        costs: amounts by their field in `State`: reward queries, denoiser calls, seconds.
    """

    def train_step(
        config: ExperimentConfig,
        experiment: Experiment,
        optimizer: object,
        group: object,
        state: State,
        wall_seconds: float,
    ) -> tuple[dict[str, float], tuple[RewardQuery, ...]]:
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
    """Sample one video and write it as an mp4.

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
    """Write the recipe's denoisers with a saved adapter merged into them, in ``model.precision``; return their folders.

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
    """The recipe with the rank, alpha and target modules of a saved adapter."""
    if adapter is None:
        return config
    return config.model_copy(
        update={"adapter": models.adapter_shape(adapter, bare_alpha=config.adapter.alpha)}
    )


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
