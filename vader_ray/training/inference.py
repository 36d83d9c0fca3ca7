"""Use of a trained adapter in this process: evaluation, generation, merging."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from vader_ray import models
from vader_ray.alignment.clips import sample_frames
from vader_ray.config import ExperimentConfig, check_seed
from vader_ray.config.auto import without_auto
from vader_ray.errors import UserError
from vader_ray.hub import find_adapter
from vader_ray.metrics import PairedMetric
from vader_ray.models.core.adapter_strength import step_strengths
from vader_ray.outputs import check_output, check_output_folder, explain_write_errors
from vader_ray.stages import announce
from vader_ray.training.checkpoint import State
from vader_ray.training.distributed import WorkerGroup
from vader_ray.training.evaluation import evaluate, to_uint8
from vader_ray.training.events import StepEvent
from vader_ray.training.experiment import Experiment, build, check_texts, encode
from vader_ray.training.final_test import is_test_due, run_test
from vader_ray.training.loop import evaluate_and_select, run_costs
from vader_ray.training.media import write_mp4


def evaluate_adapter(config: ExperimentConfig, adapter: Path | None) -> dict[str, float]:
    """Evaluate the held-out videos with a saved adapter, or of the pretrained model; return the means.

    Metrics that compare with the base model's videos are left out.

    Raises:
        UserError: the adapter is missing, damaged or of another model, or ``generation.adapter_strength`` has
            no adapter.
    """
    strengths = _adapter_strengths(config, adapter)
    adapter = _find(adapter)
    config = without_auto(_shaped_like(config, adapter, strengths))
    experiment = build(config, _device())
    if adapter is not None:
        experiment.model.load_adapter(adapter)
    alone = [each for each in experiment.metrics if not isinstance(each.metric, PairedMetric)]
    experiment = replace(experiment, metrics=alone)
    return evaluate(config, experiment, WorkerGroup(), adapter_strengths=strengths).metrics


def evaluate_against_base(
    config: ExperimentConfig,
    experiment: Experiment,
    adapter: Path,
    costs: Mapping[str, float],
    *,
    on_step: Callable[[StepEvent], object],
) -> State:
    """Evaluate the pretrained model and a saved adapter; emit the first and the last event of a training run.

    The last event carries the adapter, and as best adapter the better of the two.

    Args:
        experiment: the loaded recipe with a fresh adapter.
        costs: costs of the saved adapter by their field in `State`: reward queries, denoiser calls, seconds.
    """
    state, started, group = State(), time.monotonic(), WorkerGroup()
    with tempfile.TemporaryDirectory(prefix="vader_ray_") as scratch:
        saved = Path(scratch) / "saved"
        base, _ = evaluate_and_select(config, experiment, group, state, saved / "best_adapter", None)
        metrics = base.metrics | run_costs(state, experiment.device, started)
        on_step(StepEvent(0, metrics, videos=base.videos, state=state))
        experiment.model.load_adapter(adapter)
        state.step = config.num_steps
        for name, amount in costs.items():
            setattr(state, name, amount)
        after, alarms = evaluate_and_select(
            config, experiment, group, state, saved / "best_adapter", base.base_features
        )
        experiment.model.save_adapter(saved / "adapter")
        metrics = after.metrics | run_costs(state, experiment.device, started)
        event = StepEvent(state.step, metrics, (), after.videos, alarms, checkpoint=saved, state=state)
        on_step(event)
        if is_test_due(config, state):
            metrics = run_test(config, experiment, group, state, saved / "best_adapter")
            on_step(StepEvent(state.step, metrics, checkpoint=saved, state=state))
    return state


@torch.no_grad()
def generate_video(
    config: ExperimentConfig, prompt: str, adapter: Path | None, seed: int, output: Path
) -> None:
    """Sample one video and write it as an mp4.

    Raises:
        UserError: the prompt, the seed or the output cannot be used, the adapter is missing, damaged or of
            another model, or ``generation.adapter_strength`` has no adapter.
    """
    strengths = _adapter_strengths(config, adapter)
    check_output(output, suffix=".mp4")
    check_seed(seed)
    check_texts([prompt])
    adapter = _find(adapter)
    torch.set_num_threads(config.runtime.num_threads)
    announce(f"loading the model {config.model.family}")
    config = _shaped_like(config, adapter, strengths)
    device, offload = _device(), config.runtime.offload_weights
    model = models.build(
        config.model,
        config.sampling,
        config.adapter,
        seed=0,
        chunk_size=config.runtime.decode_chunk_size,
        device=device,
        mesh=WorkerGroup().mesh(1, device) if offload else None,
        offload_weights=offload,
    )
    if adapter is not None:
        model.load_adapter(adapter)
    num_clips = config.sampling.num_clips
    clips = f", {num_clips} times" if num_clips > 1 else ""
    announce(f"sampling a video in {config.sampling.num_inference_steps} denoising steps{clips}")
    (frames,) = sample_frames(
        model,
        encode(model, [prompt]),
        [seed],
        num_clips=num_clips,
        adapter_strengths=strengths,
        precision=config.runtime.matmul_precision,
    )
    announce("writing the video")
    with explain_write_errors(output):
        write_mp4(to_uint8(frames[0]), output, config.evaluation.frames_per_second)


def merge_adapter(config: ExperimentConfig, adapter: Path, output: Path) -> list[Path]:
    """Merge a saved adapter into the recipe's denoisers, in ``model.precision``; return the folders written.

    The weights are the published ones, also if ``model.quantization`` was used in training.

    Raises:
        UserError: the adapter is missing, damaged or of another model, or its denoiser is not the library's.
    """
    check_output_folder(output)
    adapter = find_adapter(adapter)
    config = _shaped_like(config, adapter)
    announce(f"loading the model {config.model.family}")
    model = models.build(
        config.model.model_copy(update={"quantization": None}),
        config.sampling,
        config.adapter,
        seed=0,
        chunk_size=1,
        device=torch.device("cpu"),
    )
    model.load_adapter(adapter)
    announce("merging the adapter and writing the denoiser")
    return list(model.save_merged(output))


def _find(adapter: Path | None) -> Path | None:
    return None if adapter is None else find_adapter(adapter)


def _adapter_strengths(config: ExperimentConfig, adapter: Path | None) -> list[float] | None:
    strengths = step_strengths(config.generation.adapter_strength, config.sampling.num_inference_steps)
    if adapter is None and strengths is not None:
        raise UserError(
            f"generation.adapter_strength={[list(point) for point in config.generation.adapter_strength]} "
            "scales the update of an adapter, and none is given; name one (--adapter), or leave the setting "
            "out"
        )
    return strengths


def _shaped_like(
    config: ExperimentConfig, adapter: Path | None, strengths: Sequence[float] | None = None
) -> ExperimentConfig:
    """The recipe with the rank, alpha, target modules and networks of a saved adapter.

    Raises:
        UserError: there is no adapter, or it is damaged, or it changes a text encoder and its strength is not
            the same in all denoising steps.
    """
    if adapter is None:
        return config
    denoiser = models.resolve(models.find_family(config.model)).denoiser_name
    shape = models.adapter_shape(adapter, bare_alpha=config.adapter.alpha, denoiser=denoiser)
    if len(set(strengths or ())) > 1 and (encoders := shape.text_encoders()):
        raise UserError(
            f"generation.adapter_strength: the adapter in {adapter} changes {encoders[0]}, which is called "
            "once for all denoising steps; give one number in place of a schedule"
        )
    return config.model_copy(update={"adapter": shape})


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
