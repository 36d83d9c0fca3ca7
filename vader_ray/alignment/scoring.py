"""Scores of videos without gradient: for evaluations, and for algorithms that need no reward gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vader_ray.alignment.call_reward import call_reward
from vader_ray.alignment.decoding import decode
from vader_ray.alignment.precision import matmul_precision
from vader_ray.alignment.reward_gradient import RewardOutput, RewardTerm, gather_indices
from vader_ray.alignment.rollout import Batching, Rollout
from vader_ray.types import Frames, RemoteReward, Reward, Scores, Trajectory, TrajectoryModel


@torch.no_grad()
def sample_and_score(
    model: TrajectoryModel, terms: Sequence[RewardTerm], rollout: Rollout, batching: Batching
) -> tuple[list[Trajectory], list[RewardOutput]]:
    """Sample a rollout's videos with their trajectories and score them, ``batching.prefix`` at a time."""
    trajectories, outputs = list[Trajectory](), list[RewardOutput]()
    for part in rollout.parts(batching.prefix):
        trajectory = model.sample_trajectory(part.conditioning, part.seeds)
        assert trajectory.latents is not None
        with matmul_precision(batching.matmul_precision):
            frames, indices = decode(trajectory.latents, model.decoder, part.wanted_frames())
            scores = score(frames, indices, part.prompts, terms, part.frame_indices, batching.chunk)
        trajectories.append(trajectory)
        outputs.append(RewardOutput(scores, objective(terms, scores), {}))
    return trajectories, outputs


def score(
    frames: Frames,
    indices: Sequence[int],
    prompts: Sequence[str],
    terms: Sequence[RewardTerm],
    frame_indices: Sequence[Sequence[Sequence[int]]],
    chunk_size: int,
) -> dict[str, Scores]:
    """Score decoded frames without gradient; local rewards are computed while remote ones are pending.

    The arguments are those of `vader_ray.alignment.reward_gradient.submit_rewards`.

    Returns:
        Score of each video, by reward and in the order of the terms.
    """
    positions = gather_indices(frames, indices, frame_indices)
    pending, scores = {}, dict[str, Scores]()
    for term, position in zip(terms, positions, strict=True):
        if isinstance(term.reward, RemoteReward):
            chosen = frames.gather(1, position)
            pending[term.name] = term.reward.submit_scores(chosen, prompts, chunk_size)
    for term, position in zip(terms, positions, strict=True):
        if not isinstance(term.reward, RemoteReward):
            scores[term.name] = score_only(
                term.reward, frames.gather(1, position), prompts, chunk_size, name=term.name
            )
    scores |= {name: future.result() for name, future in pending.items()}
    return {term.name: scores[term.name] for term in terms}


@torch.no_grad()
def score_only(
    reward: Reward, frames: Frames, prompts: Sequence[str], chunk_size: int, *, name: str = "reward"
) -> Scores:
    """Return one reward's scores without gradient; a frame reward is computed in chunks of frames.

    Args:
        name: of the reward in the recipe, for messages.

    Raises:
        RunFailed: the reward raised an exception, or did not return one score per video.
    """
    num_frames = frames.shape[1]
    size = chunk_size if reward.granularity == "frame" else num_frames
    total = frames.new_zeros(len(frames))
    for chunk in frames.split(size, dim=1):
        total += (call_reward(reward, chunk, prompts, name) * (chunk.shape[1] / num_frames)).to(total.dtype)
    return total


def objective(terms: Sequence[RewardTerm], scores: dict[str, Scores]) -> Scores:
    """Return the objective of each video: the sum of the terms' contributions."""
    return torch.stack([term.value(scores[term.name]) for term in terms]).sum(dim=0)


def objectives(outputs: Sequence[RewardOutput]) -> Scores:
    """Concatenate the objectives of batches of videos."""
    return torch.cat([output.objective for output in outputs])
