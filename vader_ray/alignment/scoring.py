"""Videos and their rewards without gradient, for algorithms that need no more."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vader_ray.alignment.reward_gradient import RewardOutput, RewardTerm, decode, submit_scores
from vader_ray.alignment.rollout import Batching, Rollout
from vader_ray.types import Latents, Trajectory, VideoModel


@torch.no_grad()
def sample_and_score(
    model: VideoModel, terms: Sequence[RewardTerm], rollout: Rollout, batching: Batching
) -> tuple[list[Trajectory], list[RewardOutput]]:
    """The rollout's videos with all samples of their denoising, and what the rewards say, ``batching.prefix`` at a time."""
    trajectories, outcomes = list[Trajectory](), list[RewardOutput]()
    for part in rollout.parts(batching.prefix):
        trajectory = model.sample_trajectory(part.conditioning, part.seeds)
        assert trajectory.latents is not None
        trajectories.append(trajectory)
        outcomes.append(score(model, terms, part, trajectory.latents, batching.chunk))
    return trajectories, outcomes


def score(
    model: VideoModel, terms: Sequence[RewardTerm], rollout: Rollout, latents: Latents, chunk_size: int
) -> RewardOutput:
    """What the rewards say of decoded latents; rewards of other processes are asked before any answer is awaited."""
    wanted = sorted({frame for chosen in rollout.seen for row in chosen for frame in row})
    frames, indices = decode(latents, model.decoder, wanted)
    place = {frame: position for position, frame in enumerate(indices)}
    answers = []
    for term, chosen in zip(terms, rollout.seen, strict=True):
        seen = torch.stack(
            [video[[place[frame] for frame in row]] for video, row in zip(frames, chosen, strict=True)]
        )
        answers.append(submit_scores(term.reward, seen, rollout.prompts, chunk_size))
    scores = {term.name: answer() for term, answer in zip(terms, answers, strict=True)}
    objective = torch.stack([term.value(scores[term.name]).to(frames.dtype) for term in terms]).sum(dim=0)
    return RewardOutput(scores, objective, {})


def objectives(scored: Sequence[RewardOutput]) -> Tensor:
    """The objective of every video."""
    return torch.cat([part.objective for part in scored])
