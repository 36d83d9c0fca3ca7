"""One training step: sample, compute the algorithm's gradient, sum it over workers, update the adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from torch import Tensor, nn

from vader_ray.alignment.base import StepContext, UpdateResult
from vader_ray.alignment.frames import choose_frames
from vader_ray.alignment.reward_dropout import draw_kept, kept_terms
from vader_ray.alignment.reward_gradient import RewardTerm
from vader_ray.alignment.rollout import Rollout
from vader_ray.alignment.scoring import objectives
from vader_ray.config import ExperimentConfig, RuntimeConfig, split_image
from vader_ray.errors import RunFailed
from vader_ray.training.checkpoint import State
from vader_ray.training.distributed import WorkerGroup
from vader_ray.training.events import RewardQuery
from vader_ray.training.experiment import Experiment, batching
from vader_ray.training.optimizer import AdapterOptimizer
from vader_ray.training.pairs import read_frames
from vader_ray.training.seeding import derive_seed, generator, prompt_of
from vader_ray.types import TrajectoryModel


@dataclass(frozen=True, slots=True)
class QueryResult:
    """One reward query and the gradients of its rewards."""

    query: RewardQuery
    gradient_norms: dict[str, float]
    """L2 norm of each weighted reward's gradient with respect to the frames, by reward."""


@dataclass(frozen=True, slots=True)
class _Part:
    """One worker's part of an update, gathered over the workers at once."""

    results: list[QueryResult]
    """Reward queries of the step, in its first update."""
    metrics: dict[str, list[float]]
    """`UpdateResult.metrics`."""
    denoiser_calls: int
    """Calls since the update before."""


def train_step(
    config: ExperimentConfig,
    experiment: Experiment,
    optimizer: AdapterOptimizer,
    group: WorkerGroup,
    state: State,
    wall_seconds: float,
) -> tuple[dict[str, float], tuple[RewardQuery, ...]]:
    """Take one step of the recipe's algorithm; return its metrics and its reward queries over all workers.

    Raises:
        RunFailed: the gradient was not finite for several steps in a row.
    """
    first = state.step * config.videos_per_step
    videos = [first + index for index in group.share(config.videos_per_step, experiment.algorithm.group_size)]
    terms, rollout = _drop_rewards(
        config, experiment.terms, make_rollout(config, experiment, videos), state.step
    )
    context = step_context(config, group, state)
    optimizer.start_step(state.step)
    state.step += 1
    calls, norms, measured = experiment.model.denoiser_calls, list[float](), list[dict[str, list[float]]]()
    results: list[QueryResult] = []
    for update in experiment.algorithm.updates(
        experiment.model, terms, rollout, batching(config.runtime), context
    ):
        own = [] if norms else _query_results(rollout, videos, update, state.step, wall_seconds)
        parts = group.gather([_Part(own, update.metrics, experiment.model.denoiser_calls - calls)])
        calls = experiment.model.denoiser_calls
        results += [result for part in parts for result in part.results]
        measured += [part.metrics for part in parts]
        state.denoiser_calls += sum(part.denoiser_calls for part in parts)
        bound, dtype = config.optimizer.max_grad_norm, gradient_dtype(config.runtime)
        norms.append(sum_and_clip(optimizer.parameters, group, bound, dtype))
        _update(config, optimizer, norms[-1], state, results)
    queries = tuple(result.query for result in results)
    state.reward_queries += len(queries) * config.sampling.num_endings
    metrics = _metrics(results, state) | {"train/grad_norm": fmean(norms)} | optimizer.metrics()
    return metrics | _means(measured), queries


def step_context(config: ExperimentConfig, group: WorkerGroup, state: State) -> StepContext:
    """Return the part of the next step that is the same on all workers."""
    return StepContext(
        num_videos=config.videos_per_step,
        gather=group.gather,
        generator=generator(config.seed, "truncation", state.step),
        algorithm_state=state.algorithm_state,
    )


def make_rollout(config: ExperimentConfig, experiment: Experiment, videos: Sequence[int]) -> Rollout:
    """Prepare prompts, conditioning, noise and scored frames of videos, from the seed and their indices."""
    if experiment.pairs:
        return _given_rollout(config, experiment, videos)
    group_size = experiment.algorithm.group_size
    prompts = [prompt_of(config.prompts.train, config.seed, video // group_size) for video in videos]
    return Rollout(
        prompts=[split_image(prompt)[1] for prompt in prompts],
        conditioning=experiment.condition(prompts),
        seeds=[derive_seed(config.seed, "noise", video) for video in videos],
        frame_indices=[
            [
                choose_frames(
                    term.frames,
                    config.sampling.total_frames(),
                    generator(config.seed, "frames", video, index),
                )
                for video in videos
            ]
            for index, term in enumerate(experiment.terms)
        ],
        draw_seeds=[derive_seed(config.seed, "algorithm", video) for video in videos],
    )


def _drop_rewards(
    config: ExperimentConfig, terms: Sequence[RewardTerm], rollout: Rollout, step: int
) -> tuple[Sequence[RewardTerm], Rollout]:
    """Return the rewards that a step computes, the same on all workers, and the frames that they score."""
    dropout = [reward.dropout for reward in config.rewards]
    if not any(dropout):
        return terms, rollout
    kept = draw_kept(dropout, generator(config.seed, "reward_dropout", step))
    indices = [rollout.frame_indices[index] for index in kept]
    return kept_terms(terms, dropout, kept), replace(rollout, frame_indices=indices)


def _given_rollout(config: ExperimentConfig, experiment: Experiment, videos: Sequence[int]) -> Rollout:
    """Pairs from a file, the better one first: no video is sampled and no reward computed."""
    model, group_size = experiment.model, experiment.algorithm.group_size
    assert isinstance(model, TrajectoryModel)
    pairs = [prompt_of(experiment.pairs, config.seed, video // group_size) for video in videos]
    prompts = [pair.prompt for pair in pairs]
    paths = [pair.loser if video % 2 else pair.winner for pair, video in zip(pairs, videos, strict=True)]
    frames = torch.stack([read_frames(path, config.sampling) for path in paths])
    return Rollout(
        prompts=[split_image(prompt)[1] for prompt in prompts],
        conditioning=experiment.condition(prompts),
        seeds=(seeds := [derive_seed(config.seed, "noise", video) for video in videos]),
        frame_indices=[],
        draw_seeds=[derive_seed(config.seed, "algorithm", video) for video in videos],
        given=model.encode_videos(frames, seeds),
    )


def sum_and_clip(
    parameters: Sequence[nn.Parameter],
    group: WorkerGroup,
    max_norm: float,
    dtype: torch.dtype | None = None,
) -> float:
    """Sum the adapter's gradients over workers and clip them; return their norm before clipping.

    Args:
        parameters: the adapter's.
        group: the workers.
        max_norm: largest norm.
        dtype: of the gradients on the network, by default their own.
    """
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    group.sum_([parameter.grad for parameter in parameters if parameter.grad is not None], dtype)
    return float(torch.nn.utils.clip_grad_norm_(parameters, max_norm))


def gradient_dtype(runtime: RuntimeConfig) -> torch.dtype | None:
    """Return the dtype of gradients on the network; None for their own."""
    return torch.bfloat16 if runtime.gradient_precision == "bfloat16" else None


def _query_results(
    rollout: Rollout, videos: Sequence[int], update: UpdateResult, step: int, wall_seconds: float
) -> list[QueryResult]:
    if not update.outputs:
        return []
    scores = _rows([part.scores for part in update.outputs], len(videos))
    norms = _rows([part.gradient_norms for part in update.outputs], len(videos))
    objective = objectives(update.outputs).tolist()
    return [
        QueryResult(
            RewardQuery(step, video, prompt, seed, scores[i], objective[i], update.grad_steps, wall_seconds),
            norms[i],
        )
        for i, (video, prompt, seed) in enumerate(zip(videos, rollout.prompts, rollout.seeds, strict=True))
    ]


def _rows(parts: Sequence[dict[str, Tensor]], num_rows: int) -> list[dict[str, float]]:
    """Turn the columns of several batches into one dict per video."""
    columns = {name: torch.cat([part[name] for part in parts]).tolist() for name in parts[0]}
    return [{name: column[row] for name, column in columns.items()} for row in range(num_rows)]


def _update(
    config: ExperimentConfig,
    optimizer: AdapterOptimizer,
    norm: float,
    state: State,
    results: Sequence[QueryResult],
) -> None:
    """Update the adapter, or skip the step if the summed gradient is not finite: then all workers skip it."""
    if torch.isfinite(torch.tensor(norm)):
        optimizer.update()
        state.nonfinite_in_a_row = 0
        return
    optimizer.zero_grad()
    state.nonfinite_steps += 1
    state.nonfinite_in_a_row += 1
    if state.nonfinite_in_a_row >= config.optimizer.max_nonfinite_steps:
        raise RunFailed(
            f"step {state.step}: the gradient was {norm} for {state.nonfinite_in_a_row} steps in a row; "
            f"{_cause(results)}"
        )


def _cause(results: Sequence[QueryResult]) -> str:
    for query in (result.query for result in results):
        for name, value in query.scores.items():
            if not torch.isfinite(torch.tensor(value)):
                return (
                    f"reward {name!r} returned {value} for video {query.video} ({query.prompt!r}): "
                    "correct or remove that reward"
                )
    return "the rewards are finite, so lower optimizer.learning_rate or raise model.precision"


def _metrics(results: Sequence[QueryResult], state: State) -> dict[str, float]:
    metrics = {"train/nonfinite_steps": float(state.nonfinite_steps)}
    if not results:
        return metrics
    first = results[0]
    metrics["train/reward_mean"] = fmean(result.query.objective for result in results)
    for name in first.query.scores:
        metrics[f"train/reward/{name}"] = fmean(result.query.scores[name] for result in results)
    for name in first.gradient_norms:
        metrics[f"train/gradient_norm/{name}"] = fmean(result.gradient_norms[name] for result in results)
    return metrics | (
        {"train/graded_steps": float(len(first.query.grad_steps))} if first.query.grad_steps else {}
    )


def _means(measured: Sequence[dict[str, list[float]]]) -> dict[str, float]:
    """Mean of each of an algorithm's diagnostics over all workers and updates."""
    return {
        f"train/{name}": fmean(value for part in measured for value in part[name]) for name in measured[0]
    }
