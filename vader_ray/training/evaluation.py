"""Evaluation on validation or test prompts with fixed noise: trained rewards, held-out rewards, metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from statistics import fmean
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from vader_ray.alignment.clips import sample_frames
from vader_ray.alignment.frames import choose_frames, every_frame_rule
from vader_ray.alignment.precision import matmul_precision
from vader_ray.alignment.scoring import objective, score
from vader_ray.config import ExperimentConfig, split_image
from vader_ray.errors import explain_plugin_errors
from vader_ray.metrics import Features, Metric, PairedMetric, SetMetric, VideoMetric
from vader_ray.metrics.core.statistics import (
    confidence_interval,
    effect_size,
    jackknife_values,
    prompt_means,
    standard_error,
)
from vader_ray.stages import announce
from vader_ray.training.distributed import WorkerGroup
from vader_ray.training.events import Video
from vader_ray.training.experiment import EvalMetric, Experiment, batching
from vader_ray.training.seeding import derive_seed
from vader_ray.types import Frames, Scores

Split: TypeAlias = Literal["validation", "test"]
"""Set of prompts of an evaluation."""


@dataclass(frozen=True)
class Evaluation:
    """Result of one evaluation; its numbers are the same on every worker."""

    metrics: dict[str, float]
    """Means over the held-out prompts, by logged name (``eval/…``)."""
    scores: dict[str, list[float]]
    """Score of every held-out video for each reward and for ``objective``."""
    metric_values: dict[str, list[float]]
    """Value of every held-out video for each metric, by its logged name without ``eval/``."""
    prompt_values: dict[str, list[float]]
    """Value of every held-out prompt, by logged name (``eval/…``): the mean over its videos; of a
    `SetMetric`, whose values share videos, the jackknife's pseudo-value."""
    videos: tuple[Video, ...]
    """The held-out videos that are shown, with their frames; empty on other workers than worker 0."""
    base_features: dict[str, Features]
    """Features of every held-out video for each `PairedMetric`: those of the first evaluation are the base
    model's. Empty on other workers than worker 0."""
    lower_is_better: frozenset[str]
    """Logged names of the metrics that are better when low."""

    def sign(self, metric: str) -> float:
        """Return 1 for a logged metric that is better when high, −1 for one that is better when low."""
        return -1.0 if metric in self.lower_is_better else 1.0


@torch.no_grad()
def evaluate(
    config: ExperimentConfig,
    experiment: Experiment,
    group: WorkerGroup,
    base: Mapping[str, Features] | None = None,
    adapter_strengths: Sequence[float] | None = None,
    split: Split = "validation",
    stage: str = "evaluating",
) -> Evaluation:
    """Sample the validation or test videos, each on one of the workers, and score them.

    Videos and features go to worker 0 alone, numbers to every worker.

    Args:
        base: `Evaluation.base_features` of the base model's evaluation; None if this evaluation is the base
            model's. Only worker 0 uses it.
        adapter_strengths: factor of the adapter's update in each denoising step; by default 1 in all.
        split: prompts of the videos. Metrics are called ``eval/…`` for both.
        stage: name under which the evaluation is announced.
    """
    planned = planned_videos(config, split)
    announce(stage, 0, len(planned))
    _sample_missing(config, experiment, group, planned)
    share, size = [planned[index] for index in group.share(len(planned))], batching(config.runtime).prefix
    batches = [share[start : start + size] for start in range(0, len(share), size)]
    own = list[EvaluatedVideo]()
    with experiment.heldout_on_device():
        for batch in batches:
            own += _evaluate_batch(config, experiment, batch, adapter_strengths)
            announce(stage, len(planned) * len(own) // len(share), len(planned))  # the other workers likewise
    videos = group.gather_on_first(own)
    evaluation = _summarize(experiment.metrics, videos, base) if group.rank == 0 else None
    shared = group.broadcast(evaluation and replace(evaluation, videos=(), base_features={}))
    result = evaluation or shared
    assert result is not None
    return result


def _summarize(
    metrics: Sequence[EvalMetric], videos: Sequence[EvaluatedVideo], base: Mapping[str, Features] | None
) -> Evaluation:
    """Return the evaluation of all held-out videos, given in their order."""
    prompts = [video.prompt for video in videos]
    scores = {name: [video.scores[name] for video in videos] for name in videos[0].scores}
    values = {name: [video.metric_values[name] for video in videos] for name in videos[0].metric_values}
    features = {name: torch.stack([video.features[name] for video in videos]) for name in videos[0].features}
    values |= _compared(metrics, features, prompts, base)
    logged = {f"eval/reward/{name}": column for name, column in scores.items() if name != "objective"}
    logged |= {"eval/objective": scores["objective"]}
    logged |= {f"eval/{name}": column for name, column in values.items()}
    by_prompt = {name: prompt_means(column, prompts) for name, column in logged.items()}
    means = {name: fmean(column) for name, column in by_prompt.items()}
    by_prompt |= _pseudo_values(metrics, features, prompts)
    paired = [each.name for each in metrics if isinstance(each.metric, PairedMetric)]
    return Evaluation(
        metrics=means,
        scores=scores,
        metric_values=values,
        prompt_values=by_prompt,
        videos=tuple(video.shown for video in videos if video.shown is not None),
        base_features={name: features[name] for name in paired},
        lower_is_better=frozenset(
            f"eval/{name}" for each in metrics if not each.metric.higher_is_better for name in each.names()
        ),
    )


def _pseudo_values(
    metrics: Sequence[EvalMetric], features: Mapping[str, Features], prompts: Sequence[str]
) -> dict[str, list[float]]:
    """Return each prompt's pseudo-value of the metrics that compare videos with one another."""

    def of_metric(name: str, metric: SetMetric) -> list[float]:
        def mean_of(indices: Sequence[int]) -> float:
            chosen = [prompts[index] for index in indices]
            values = metric.compare(features[name][list(indices)], chosen).tolist()
            return fmean(prompt_means(values, chosen))

        with explain_plugin_errors(f"metric {name!r}"):
            return jackknife_values(mean_of, prompts)

    return {
        f"eval/{each.name}": of_metric(each.name, each.metric)
        for each in metrics
        if isinstance(each.metric, SetMetric)
    }


def _compared(
    metrics: Sequence[EvalMetric],
    features: Mapping[str, Features],
    prompts: Sequence[str],
    base: Mapping[str, Features] | None,
) -> dict[str, list[float]]:
    """Return each video's values of the metrics that compare it with other videos or the base model's."""
    values = dict[str, list[float]]()
    for each in metrics:
        with explain_plugin_errors(f"metric {each.name!r}"):
            if isinstance(each.metric, SetMetric):
                values[each.name] = each.metric.compare(features[each.name], prompts).tolist()
            elif isinstance(each.metric, PairedMetric):
                references = features if base is None else base
                scores = each.metric.compare_with_base(features[each.name], references[each.name])
                values[each.name] = scores.tolist()
    return values


def paired_gains(before: Mapping[str, list[float]], after: Mapping[str, list[float]]) -> dict[str, float]:
    """Return mean, standard error, 95 % confidence interval and effect size of the paired differences of each
    metric.

    All but the mean are left out with fewer than two prompts, and the effect size if the base model's values
    are all equal.

    Args:
        before: value of every held-out prompt before training, by logged name (`Evaluation.prompt_values`).
        after: the same now; only the metrics of ``before`` are compared.
    """
    metrics = {}
    for metric, values in before.items():
        name = gain_name(metric)
        differences = [now - first for first, now in zip(values, after[metric], strict=True)]
        metrics[f"eval/gain/{name}"] = fmean(differences)
        if len(differences) > 1:
            metrics[f"eval/gain_standard_error/{name}"] = standard_error(differences)
            low, high = map(float, confidence_interval(differences))
            metrics[f"eval/gain_low/{name}"], metrics[f"eval/gain_high/{name}"] = low, high
        if isfinite(effect := effect_size(fmean(differences), values)):
            metrics[f"eval/effect_size/{name}"] = effect
    return metrics


def gain_name(metric: str) -> str:
    """Return the name under which the gain of a logged metric is logged: ``eval/reward/hps`` has ``hps``."""
    name = metric.removeprefix("eval/")
    return (
        name.removeprefix("reward/")
        if name.startswith("reward/") or name == "objective"
        else f"metric/{name}"
    )


@dataclass(frozen=True)
class EvaluatedVideo:
    """Scores of one held-out video, and what only worker 0 needs of it."""

    prompt: str
    scores: dict[str, float]
    """Score for each reward, and ``objective``."""
    metric_values: dict[str, float]
    """Value for each `VideoMetric`, or for each of its parts."""
    features: dict[str, torch.Tensor]
    """Features for each `SetMetric` and `PairedMetric`, on the CPU."""
    shown: Video | None
    """The video itself if it is one of those that are shown."""


class PlannedVideo(NamedTuple):
    """A video of an evaluation before it is sampled."""

    prompt: str
    seed: int
    """Seed of its initial noise."""
    is_shown: bool
    """Whether its frames are kept."""


def planned_videos(config: ExperimentConfig, split: Split = "validation") -> list[PlannedVideo]:
    """Return the videos of an evaluation; prompts are repeated with other noise.

    The noise of test videos is independent of that of validation videos.
    """
    if split == "validation":
        prompts, num_videos, num_shown = (
            config.prompts.validation,
            config.evaluation.num_videos,
            config.evaluation.num_shown,
        )
    else:
        prompts, num_shown = config.prompts.test or (), 0
        num_videos = config.evaluation.num_test_videos or len(prompts)
    stream = "evaluation" if split == "validation" else "test"
    return [
        PlannedVideo(prompts[i % len(prompts)], derive_seed(config.seed, stream, i), i < num_shown)
        for i in range(num_videos)
    ]


def _sample_missing(
    config: ExperimentConfig, experiment: Experiment, group: WorkerGroup, planned: Sequence[PlannedVideo]
) -> None:
    """Sample until this worker will have called the denoiser as often as the others of its shard group.

    The videos are dropped.
    """
    model, size = experiment.model, batching(config.runtime).prefix

    def num_loops(worker: WorkerGroup) -> int:
        whole, rest = divmod(len(worker.share(len(planned))), size)
        return whole * model.num_loops(size) + (model.num_loops(rest) if rest else 0)

    missing = max(map(num_loops, group.peers(config.runtime.shard))) - num_loops(group)
    conditioning = experiment.condition([planned[0].prompt])
    for _ in range(missing * config.sampling.num_clips):
        model.sample(conditioning, [planned[0].seed])


def _evaluate_batch(
    config: ExperimentConfig,
    experiment: Experiment,
    batch: Sequence[PlannedVideo],
    adapter_strengths: Sequence[float] | None,
) -> list[EvaluatedVideo]:
    """Sample and score videos.

    They are sampled together, and decoded and scored one by one, which takes most of an evaluation's memory.
    All clips of a video but its last one are decoded before.
    """
    videos = sample_frames(
        experiment.model,
        experiment.condition([video.prompt for video in batch]),
        [video.seed for video in batch],
        num_clips=config.sampling.num_clips,
        adapter_strengths=adapter_strengths,
        precision=config.runtime.matmul_precision,
    )
    return [
        _evaluate_video(config, experiment, frames, video)
        for frames, video in zip(videos, batch, strict=True)
    ]


def _evaluate_video(
    config: ExperimentConfig, experiment: Experiment, frames: Frames, video: PlannedVideo
) -> EvaluatedVideo:
    """Score one video."""
    _, prompt = split_image(video.prompt)
    terms, num_frames = (*experiment.terms, *experiment.eval_terms), frames.shape[1]
    chosen = [choose_frames(every_frame_rule(term.frames), num_frames, torch.Generator()) for term in terms]
    frame_indices = [[indices] for indices in chosen]
    with matmul_precision(config.runtime.matmul_precision):
        scores = score(
            frames, range(num_frames), [prompt], terms, frame_indices, config.runtime.decode_chunk_size
        )
        values, features = _measure(experiment.metrics, frames, [prompt])
    shown = {name: float(column[0]) for name, column in scores.items()}
    scores["objective"] = objective(experiment.terms, scores)
    return EvaluatedVideo(
        prompt=prompt,
        scores={name: float(column[0]) for name, column in scores.items()},
        metric_values={name: float(column[0]) for name, column in values.items()},
        features={name: rows[0] for name, rows in features.items()},
        shown=Video(prompt, video.seed, shown, to_uint8(frames[0])) if video.is_shown else None,
    )


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
