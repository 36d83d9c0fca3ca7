"""Evaluation on held-out prompts with fixed noise: the trained rewards, others that were not trained, and what rewards miss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

import numpy as np
import torch
from numpy.typing import NDArray

from vader_ray.alignment.frames import choose_frames, every_frame_rule
from vader_ray.alignment.reward_gradient import RewardTerm, submit_scores
from vader_ray.config import ExperimentConfig, split_image
from vader_ray.metrics.statistics import Thumbnails, draw_resamples, interval, speeds, spread, thumbnails
from vader_ray.shapes.judge import Judge
from vader_ray.training.distributed import Group
from vader_ray.training.events import Video
from vader_ray.training.experiment import Experiment, Measure, batching
from vader_ray.training.seeding import derive_seed
from vader_ray.types import Frames, Latents, VideoDecoder


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation saw, the same on every worker."""

    metrics: dict[str, float]
    scores: dict[str, list[float]]
    """Per reward (and ``objective``), the score of every held-out video: for paired differences."""
    traits: dict[str, list[float]]
    """``diversity``, ``motion`` and the judge's verdicts (``judge/colour``) of every held-out video; in a run also
    ``distance_to_base``."""
    videos: tuple[Video, ...]
    """The videos to be shown."""
    thumbnails: Thumbnails
    """Of every held-out video: what later evaluations measure their distance to."""

    def values(self, metric: str) -> list[float]:
        """A metric ``eval/…``, video by video."""
        name = metric.removeprefix("eval/")
        return self.traits[name] if name in self.traits else self.scores[name.removeprefix("reward/")]


@torch.no_grad()
def evaluate(config: ExperimentConfig, experiment: Experiment, group: Group) -> Evaluation:
    """Sample the held-out videos, in the same batches whatever the number of workers, and score them."""
    numbered, size = list(enumerate(_heldout(config))), batching(config.runtime).prefix
    batches = [numbered[start : start + size] for start in range(0, len(numbered), size)]
    mine = [
        video for index in group.share(len(batches)) for video in _watch(config, experiment, batches[index])
    ]
    watched = _compared(experiment.measures, group.gather(mine))
    scores = {name: [item.scores[name] for item in watched] for name in watched[0].scores}
    metrics = {f"eval/reward/{name}": fmean(values) for name, values in scores.items() if name != "objective"}
    metrics["eval/objective"] = fmean(scores["objective"])
    seen = torch.stack([item.thumbnail for item in watched])
    traits = {name: [item.traits[name] for item in watched] for name in watched[0].traits}
    traits["diversity"] = spread(seen, [item.prompt for item in watched])
    metrics |= {f"eval/{name}": fmean(values) for name, values in traits.items()}
    return Evaluation(
        metrics, scores, traits, tuple(item.video for item in watched if item.video is not None), seen
    )


def compare(
    before: dict[str, list[float]], now: dict[str, list[float]], generator: torch.Generator
) -> dict[str, float]:
    """Mean, standard error and 95 % confidence interval of the paired differences over the held-out videos, per reward."""
    metrics = {}
    resamples = draw_resamples(len(before["objective"]), generator)
    for name in before:
        differences = [after - first for first, after in zip(before[name], now[name], strict=True)]
        metrics[f"eval/gain/{name}"] = fmean(differences)
        metrics[f"eval/gain_standard_error/{name}"] = standard_error(differences)
        metrics[f"eval/gain_low/{name}"], metrics[f"eval/gain_high/{name}"] = interval(differences, resamples)
    return metrics


def standard_error(values: Sequence[float]) -> float:
    """Of the mean; 0 for a single value."""
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


@dataclass(frozen=True)
class _Watched:
    prompt: str
    scores: dict[str, float]
    features: dict[str, torch.Tensor]
    """Per measure, what is compared of this video, on the CPU."""
    traits: dict[str, float]
    thumbnail: torch.Tensor
    video: Video | None


def _heldout(config: ExperimentConfig) -> list[tuple[str, int]]:
    """Prompt and noise seed of each held-out video; prompts come round again with other noise."""
    prompts = config.prompts.heldout
    return [
        (prompts[i % len(prompts)], derive_seed(config.seed, "evaluation", i))
        for i in range(config.evaluation.num_videos)
    ]


def _watch(
    config: ExperimentConfig, experiment: Experiment, batch: Sequence[tuple[int, tuple[str, int]]]
) -> list[_Watched]:
    conditioning = experiment.condition([prompt for _, (prompt, _) in batch])
    prompts = [split_image(prompt)[1] for _, (prompt, _) in batch]
    seeds = [seed for _, (_, seed) in batch]
    model, chunk_size = experiment.model, config.runtime.decode_chunk_size
    latents = model.sample(conditioning, seeds)
    frames = decode_all(model.decoder, latents)
    answers = {
        term.name: _ask(term, frames, prompts, chunk_size)
        for term in (*experiment.terms, *experiment.eval_terms)
    }
    scores = {name: answer() for name, answer in answers.items()}
    scores["objective"] = torch.stack([term.value(scores[term.name]) for term in experiment.terms]).sum(dim=0)
    features = {measured.name: _features(measured, frames) for measured in experiment.measures}
    moves, small = speeds(frames), thumbnails(frames)
    watched = []
    for place, (index, (_, seed)) in enumerate(batch):
        prompt = prompts[place]
        own = {name: float(values[place]) for name, values in scores.items()}
        shown = {name: own[name] for name in own if name != "objective"}
        video = (
            Video(prompt, seed, shown, to_uint8(frames[place]))
            if index < config.evaluation.num_shown
            else None
        )
        seen = {name: rows[place] for name, rows in features.items()}
        judged = _judge(frames[place], prompt) if config.evaluation.judge else {}
        watched.append(_Watched(prompt, own, seen, {"motion": moves[place], **judged}, small[place], video))
    return watched


def _compared(measures: Sequence[Measure], watched: Sequence[_Watched]) -> list[_Watched]:
    """The same videos with their scores under the measures, which need all of them in the order of the held-out list."""
    prompts = [item.prompt for item in watched]
    table = [
        (
            measured.name,
            measured.measure.compare(
                torch.stack([item.features[measured.name] for item in watched]), prompts
            ),
        )
        for measured in measures
    ]
    compared = []
    for place, item in enumerate(watched):
        own = {name: float(values[place]) for name, values in table}
        video = item.video and replace(item.video, scores={**item.video.scores, **own})
        compared.append(replace(item, scores={**item.scores, **own}, video=video))
    return compared


def _features(measured: Measure, frames: Frames) -> torch.Tensor:
    """One row per video, each computed by itself: in a batch the last bits would depend on its size."""
    chosen = list(choose_frames(every_frame_rule(measured.frames), frames.shape[1], torch.Generator()))
    return torch.cat([measured.measure.features(video[None, chosen]) for video in frames]).cpu()


def _judge(frames: torch.Tensor, prompt: str) -> dict[str, float]:
    accuracy = Judge.load().accuracy(frames[None].float().cpu(), [prompt])
    return {f"judge/{trait}": share for trait, share in accuracy.items()}


def decode_all(decoder: VideoDecoder, latents: Latents) -> Frames:
    """Every frame, portion by portion."""
    state, portions = None, []
    for chunk in decoder.chunks(latents, range(decoder.num_frames(latents))):
        portion, state = decoder.decode(latents, state, chunk)
        portions.append(portion)
    return torch.cat(portions, dim=1)


def to_uint8(frames: torch.Tensor) -> NDArray[np.uint8]:
    """Frames, height, width, 3 in 0…255."""
    pixels: NDArray[np.uint8] = (
        (frames.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    )
    return pixels


def _ask(
    term: RewardTerm, frames: Frames, prompts: Sequence[str], chunk_size: int
) -> Callable[[], torch.Tensor]:
    chosen = choose_frames(every_frame_rule(term.frames), frames.shape[1], torch.Generator())
    return submit_scores(term.reward, frames[:, list(chosen)], prompts, chunk_size)
