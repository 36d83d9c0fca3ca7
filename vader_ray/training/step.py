"""One step: videos of this worker, their reward gradient, its sum over workers, one optimizer update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from vader_ray.alignment.frames import choose_frames
from vader_ray.alignment.gradient import Scored
from vader_ray.alignment.truncation import draw_plan
from vader_ray.alignment.vader import Batching, Rollout, accumulate_gradient
from vader_ray.config import ExperimentConfig, MachineConfig, split_image
from vader_ray.training.checkpoint import State
from vader_ray.training.draws import derive, generator, prompt_of
from vader_ray.training.experiment import Experiment
from vader_ray.training.group import Group
from vader_ray.training.report import Query
from vader_ray.types import Plan, VideoModel


class TrainingError(RuntimeError):
    """A run cannot go on; the message says what happened and what to change."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One reward query and how much each reward pulled."""

    query: Query
    gradient_norms: dict[str, float]


def take_step(
    config: ExperimentConfig,
    experiment: Experiment,
    optimizer: torch.optim.Optimizer,
    group: Group,
    state: State,
    wall_seconds: float,
) -> tuple[dict[str, float], tuple[Query, ...]]:
    """Ascend the objective by one optimizer update; the step's metrics and its reward queries over all workers.

    Raises:
        TrainingError: the gradient was not finite for several steps in a row.
    """
    plan = draw_plan(config.sampling, generator(config.seed, "truncation", state.step))
    first = state.step * config.videos_per_step
    videos = [first + index for index in group.share(config.videos_per_step)]
    rollout = make_rollout(config, experiment, videos)
    optimizer.zero_grad(set_to_none=True)
    scale, calls = 1 / config.videos_per_step, experiment.model.denoiser_calls
    scored = accumulate_gradient(experiment.model, experiment.terms, rollout, plan, batching(config.machine), scale=scale)
    state.step += 1
    state.reward_queries += config.videos_per_step
    state.denoiser_calls += sum(group.gather([experiment.model.denoiser_calls - calls]))
    outcomes = group.gather(_outcomes(rollout, videos, scored, plan, state.step, wall_seconds))
    queries = tuple(outcome.query for outcome in outcomes)
    norm = sum_and_clip(experiment.model, group, config.optimizer.max_grad_norm)
    _update(config, optimizer, norm, state, queries)
    return _metrics(outcomes, norm, plan, state), queries


def make_rollout(config: ExperimentConfig, experiment: Experiment, videos: Sequence[int]) -> Rollout:
    """Prompts, conditioning, noise and seen frames of some videos: functions of the seed and the video's index."""
    prompts = [prompt_of(config.prompts.train, config.seed, video) for video in videos]
    return Rollout(
        prompts=[split_image(prompt)[1] for prompt in prompts],
        conditioning=experiment.condition(prompts),
        seeds=[derive(config.seed, "noise", video) for video in videos],
        seen=[
            [
                choose_frames(term.frames, config.sampling.num_frames, generator(config.seed, "frames", video, place))
                for video in videos
            ]
            for place, term in enumerate(experiment.terms)
        ],
    )


def sum_and_clip(model: VideoModel, group: Group, max_norm: float) -> float:
    """Replace the adapter's gradients by their sum over workers, clip them; their norm before clipping."""
    parameters = model.adapter_parameters()
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    group.sum_([parameter.grad for parameter in parameters if parameter.grad is not None])
    return float(torch.nn.utils.clip_grad_norm_(parameters, max_norm))


def batching(machine: MachineConfig) -> Batching:
    """How many videos and frames this machine holds at once."""
    return Batching(machine.prefix_batch_size, machine.micro_batch_size, machine.decode_chunk_size)


def _outcomes(
    rollout: Rollout, videos: Sequence[int], scored: Sequence[Scored], plan: Plan, step: int, wall_seconds: float
) -> list[Outcome]:
    scores = _rows([part.scores for part in scored])
    norms = _rows([part.gradient_norms for part in scored])
    objective = torch.cat([part.objective for part in scored]).tolist()
    return [
        Outcome(Query(step, video, prompt, seed, scores[i], objective[i], plan.graded, wall_seconds), norms[i])
        for i, (video, prompt, seed) in enumerate(zip(videos, rollout.prompts, rollout.seeds, strict=True))
    ]


def _rows(parts: Sequence[dict[str, Tensor]]) -> list[dict[str, float]]:
    """Columns of batches become one dict per video."""
    columns = {name: torch.cat([part[name] for part in parts]).tolist() for name in parts[0]}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _update(
    config: ExperimentConfig, optimizer: torch.optim.Optimizer, norm: float, state: State, queries: Sequence[Query]
) -> None:
    """Step, or skip the step when the gradient is not finite: the sum over workers makes all of them skip alike."""
    if torch.isfinite(torch.tensor(norm)):
        optimizer.step()
        state.nonfinite_in_a_row = 0
        return
    state.nonfinite_steps += 1
    state.nonfinite_in_a_row += 1
    if state.nonfinite_in_a_row >= config.optimizer.max_nonfinite_steps:
        raise TrainingError(
            f"step {state.step}: the gradient was {norm} for {state.nonfinite_in_a_row} steps in a row; {_cause(queries)}"
        )


def _cause(queries: Sequence[Query]) -> str:
    for query in queries:
        for name, value in query.scores.items():
            if not torch.isfinite(torch.tensor(value)):
                return f"reward {name!r} answered {value} for video {query.video} ({query.prompt!r}): mend or drop that reward"
    return "the rewards are finite, so lower optimizer.learning_rate or raise model.precision"


def _metrics(outcomes: Sequence[Outcome], norm: float, plan: Plan, state: State) -> dict[str, float]:
    metrics = {
        "train/reward_mean": fmean(outcome.query.objective for outcome in outcomes),
        "train/grad_norm": norm,
        "train/nonfinite_steps": float(state.nonfinite_steps),
        "train/graded_steps": float(len(plan.graded)),
    }
    for name in outcomes[0].query.scores:
        metrics[f"train/reward/{name}"] = fmean(outcome.query.scores[name] for outcome in outcomes)
        metrics[f"train/gradient_norm/{name}"] = fmean(outcome.gradient_norms[name] for outcome in outcomes)
    return metrics
