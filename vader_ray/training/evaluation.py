"""Evaluation on held-out prompts with fixed noise: trained rewards, held-out rewards, and metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
import torch
from numpy.typing import NDArray

from vader_ray.alignment.decoding import decode_all
from vader_ray.alignment.frames import choose_frames, every_frame_rule
from vader_ray.alignment.precision import matmul_precision
from vader_ray.alignment.scoring import objective, score
from vader_ray.config import ExperimentConfig, split_image
from vader_ray.errors import explain_plugin_errors
from vader_ray.metrics import Features, Metric, PairedMetric, SetMetric, VideoMetric
from vader_ray.metrics.core.statistics import bootstrap_interval, draw_resamples, standard_error
from vader_ray.training.distributed import WorkerGroup
from vader_ray.training.events import Video
from vader_ray.training.experiment import EvalMetric, Experiment, batching
from vader_ray.training.seeding import derive_seed
from vader_ray.types import Frames, Scores


@dataclass(frozen=True)
class Evaluation:
    """Result of one evaluation, the same on every worker."""

    metrics: dict[str, float]
    """Means over the held-out videos, by logged name (``eval/…``)."""
    scores: dict[str, list[float]]
    """Score of every held-out video for each reward and for ``objective``."""
    metric_values: dict[str, list[float]]
    """Value of every held-out video for each metric, by its logged name without ``eval/``."""
    videos: tuple[Video, ...]
    """The held-out videos that are shown, with their frames."""
    base_features: dict[str, Features]
    """Features of every held-out video for each `PairedMetric`: those of the first evaluation are the base
    model's."""
    lower_is_better: frozenset[str]
    """Logged names of the metrics that are better when low."""

    def values(self, metric: str) -> list[float]:
        """Return the value of every held-out video for a logged metric ``eval/…``."""
        name = metric.removeprefix("eval/")
        if name in self.metric_values:
            return self.metric_values[name]
        return self.scores[name.removeprefix("reward/")]

    def sign(self, metric: str) -> float:
        """Return 1 for a logged metric that is better when high, −1 for one that is better when low."""
        return -1.0 if metric in self.lower_is_better else 1.0


@torch.no_grad()
def evaluate(config: ExperimentConfig, experiment: Experiment, group: WorkerGroup) -> Evaluation:
    """Sample the held-out videos, in the same batches whatever the number of workers, and score them.

    Metrics that compare with the base model's videos are added by `compare_with_base`.
    """
    numbered, size = list(enumerate(_heldout(config))), batching(config.runtime).prefix
    batches = [numbered[start : start + size] for start in range(0, len(numbered), size)]
    _sample_missing(config, experiment, group, batches)
    own = [
        video
        for index in group.share(len(batches))
        for video in _evaluate_batch(config, experiment, batches[index])
    ]
    videos = group.gather(own)
    scores = {name: [video.scores[name] for video in videos] for name in videos[0].scores}
    metrics = {f"eval/reward/{name}": fmean(values) for name, values in scores.items() if name != "objective"}
    metrics["eval/objective"] = fmean(scores["objective"])
    features = {name: torch.stack([video.features[name] for video in videos]) for name in videos[0].features}
    prompts = [video.prompt for video in videos]
    values = {name: [video.metric_values[name] for video in videos] for name in videos[0].metric_values}
    for each in experiment.metrics:
        if isinstance(each.metric, SetMetric):
            with explain_plugin_errors(f"metric {each.name!r}"):
                values[each.name] = each.metric.compare(features[each.name], prompts).tolist()
    paired = [each.name for each in experiment.metrics if isinstance(each.metric, PairedMetric)]
    return Evaluation(
        metrics=metrics | {f"eval/{name}": fmean(numbers) for name, numbers in values.items()},
        scores=scores,
        metric_values=values,
        videos=tuple(video.shown for video in videos if video.shown is not None),
        base_features={name: features[name] for name in paired},
        lower_is_better=frozenset(
            f"eval/{name}"
            for each in experiment.metrics
            if not each.metric.higher_is_better
            for name in each.names()
        ),
    )


def compare_with_base(
    evaluation: Evaluation, metrics: Sequence[EvalMetric], base: Mapping[str, Features]
) -> Evaluation:
    """Return the evaluation with the metrics that compare each video with the base model's.

    Args:
        base: `Evaluation.base_features` of the base model's evaluation.
    """
    values = {
        each.name: each.metric.compare_with_base(
            evaluation.base_features[each.name], base[each.name]
        ).tolist()
        for each in metrics
        if isinstance(each.metric, PairedMetric)
    }
    means = {f"eval/{name}": fmean(numbers) for name, numbers in values.items()}
    return replace(
        evaluation,
        metrics=evaluation.metrics | means,
        metric_values=evaluation.metric_values | values,
    )


def paired_gains(
    before: dict[str, list[float]], after: dict[str, list[float]], generator: torch.Generator
) -> dict[str, float]:
    """Return mean, standard error and 95 % confidence interval of each reward's paired differences.

    Args:
        before: score of every held-out video before training, by reward.
        after: the same now.
        generator: source of the bootstrap's resamples.
    """
    metrics = {}
    resamples = draw_resamples(len(before["objective"]), generator)
    for name in before:
        differences = [now - first for first, now in zip(before[name], after[name], strict=True)]
        metrics[f"eval/gain/{name}"] = fmean(differences)
        metrics[f"eval/gain_standard_error/{name}"] = standard_error(differences)
        low, high = bootstrap_interval(differences, resamples)
        metrics[f"eval/gain_low/{name}"], metrics[f"eval/gain_high/{name}"] = low, high
    return metrics


@dataclass(frozen=True)
class _EvaluatedVideo:
    """Scores of one held-out video, small enough to be gathered over the workers."""

    prompt: str
    scores: dict[str, float]
    """Score for each reward, and ``objective``."""
    metric_values: dict[str, float]
    """Value for each `VideoMetric`, or for each of its parts."""
    features: dict[str, torch.Tensor]
    """Features for each `SetMetric` and `PairedMetric`, on the CPU."""
    shown: Video | None
    """The video itself if it is one of those that are shown."""


def _heldout(config: ExperimentConfig) -> list[tuple[str, int]]:
    """Prompt and noise seed of each held-out video; prompts are repeated with other noise."""
    prompts = config.prompts.heldout
    return [
        (prompts[i % len(prompts)], derive_seed(config.seed, "evaluation", i))
        for i in range(config.evaluation.num_videos)
    ]


def _sample_missing(
    config: ExperimentConfig,
    experiment: Experiment,
    group: WorkerGroup,
    batches: Sequence[Sequence[tuple[int, tuple[str, int]]]],
) -> None:
    """Sample until this worker will have called the denoiser as often as the others of its shard group.

    The videos are dropped.
    """
    model, peers = experiment.model, group.peers(config.runtime.shard)
    loops = {
        peer.rank: sum(model.num_loops(len(batches[index])) for index in peer.share(len(batches)))
        for peer in peers
    }
    _, (prompt, seed) = batches[0][0]
    for _ in range(max(loops.values()) - loops[group.rank]):
        model.sample(experiment.condition([prompt]), [seed])


def _evaluate_batch(
    config: ExperimentConfig, experiment: Experiment, batch: Sequence[tuple[int, tuple[str, int]]]
) -> list[_EvaluatedVideo]:
    """Sample and score held-out videos, given by their index, prompt and noise seed."""
    conditioning = experiment.condition([prompt for _, (prompt, _) in batch])
    prompts = [split_image(prompt)[1] for _, (prompt, _) in batch]
    seeds = [seed for _, (_, seed) in batch]
    model, terms = experiment.model, (*experiment.terms, *experiment.eval_terms)
    latents = model.sample(conditioning, seeds)
    num_frames = model.decoder.num_frames(latents)
    chosen = [choose_frames(every_frame_rule(term.frames), num_frames, torch.Generator()) for term in terms]
    frame_indices = [[indices] * len(batch) for indices in chosen]
    chunk_size = config.runtime.decode_chunk_size
    with matmul_precision(config.runtime.matmul_precision):
        frames = decode_all(latents, model.decoder)
        scores = score(frames, range(num_frames), prompts, terms, frame_indices, chunk_size)
        values, features = _measure(experiment.metrics, frames, prompts)
    shown = [{name: float(values[row]) for name, values in scores.items()} for row in range(len(batch))]
    scores["objective"] = objective(experiment.terms, scores)
    return [
        _EvaluatedVideo(
            prompt=prompts[row],
            scores={name: float(column[row]) for name, column in scores.items()},
            metric_values={name: float(column[row]) for name, column in values.items()},
            features={name: rows[row] for name, rows in features.items()},
            shown=Video(prompts[row], seeds[row], shown[row], to_uint8(frames[row]))
            if index < config.evaluation.num_shown
            else None,
        )
        for row, (index, _) in enumerate(batch)
    ]


def _measure(
    metrics: Sequence[EvalMetric], frames: Frames, prompts: Sequence[str]
) -> tuple[dict[str, Scores], dict[str, Features]]:
    """Values of the metrics of single videos, and the features of the other metrics."""
    values: dict[str, Scores] = {}
    features: dict[str, Features] = {}
    for each in metrics:
        rule = every_frame_rule(each.frames)
        chosen = frames[:, list(choose_frames(rule, frames.shape[1], torch.Generator()))]
        with explain_plugin_errors(f"metric {each.name!r}"):
            measured = _measure_one(each.metric, chosen, prompts)
        if isinstance(measured, Mapping):
            values |= {f"{each.name}/{part}": scores for part, scores in measured.items()}
        elif isinstance(each.metric, VideoMetric):
            values[each.name] = measured
        else:
            features[each.name] = measured
    return values, features


def _measure_one(metric: Metric, frames: Frames, prompts: Sequence[str]) -> Scores | Mapping[str, Scores]:
    """Return the values of a metric of single videos, by part if it has parts, or another's features."""
    if isinstance(metric, VideoMetric):
        return metric(frames, prompts)
    # one by one: in a batch the last bits of a network's output depend on the size of the batch
    return torch.cat([metric.features(video[None]) for video in frames]).cpu()


def to_uint8(frames: torch.Tensor) -> NDArray[np.uint8]:
    """Convert a video from ``frames 3 height width`` in [0, 1] to ``frames height width 3`` in 0…255."""
    pixels: NDArray[np.uint8] = (
        (frames.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    )
    return pixels
