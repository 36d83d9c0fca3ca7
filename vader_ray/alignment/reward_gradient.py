"""The staged reward gradient: ∂objective/∂frames for any rewards, at about the memory of one chunk of frames.

The denoiser needs only ∂objective/∂latents from decoder and rewards, so the backward pass is split at the
frames: `vader_ray.alignment.decoding.decode` keeps only the input of all chunks but the last and decodes them
again in the backward pass; `submit_rewards` differentiates one reward at a time, chunk by chunk, or has
remote rewards do it; and ``frames.backward(d_frames)`` continues through the decoder into the gradient steps.
Where no reward needs more than one chunk, `vader_ray.alignment.chunked_backward` decodes each chunk once.
Every stage is exact, so the result equals that of one autograd graph over denoiser, decoder and rewards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vader_ray.alignment.call_reward import call_gradient, call_reward
from vader_ray.types import Frames, RemoteReward, Reward, RewardFuture, Scores


@dataclass(frozen=True, slots=True)
class RewardTerm:
    """One reward of the objective: ``weight · score``, ``−weight · |score − target|``, or ``−weight · max(0,
    hinge − score)``."""

    name: str
    """Name in the logged metrics."""
    reward: Reward | RemoteReward
    """The reward, in this process or in another one."""
    weight: float = 1.0
    """Factor of the term in the objective."""
    target: float | None = None
    """Score to reach; None raises the score without bound."""
    frames: str = "all"
    """Rule that chooses the frames that are scored (`vader_ray.alignment.frames.choose_frames`)."""
    hinge: float | None = None
    """Score from which on the term is 0 and has no gradient."""

    @property
    def is_linear(self) -> bool:
        """Whether the contribution is proportional to the score, so that it is a sum over a video's frames
        where the score is a mean over them."""
        return self.target is None and self.hinge is None

    def value(self, scores: Scores) -> Scores:
        """Return the term's contribution to the objective, per video."""
        if self.hinge is not None:
            return self.weight * -(self.hinge - scores).clamp(min=0)
        return self.weight * (scores if self.target is None else -(scores - self.target).abs())

    def slope(self, scores: Scores) -> Scores:
        """Return ∂value/∂score, per video; 0 at the kink of a hinge."""
        ones = torch.ones_like(scores)
        if self.hinge is not None:
            return self.weight * ones.masked_fill(scores >= self.hinge, 0.0)
        return self.weight * (ones if self.target is None else -torch.sign(scores - self.target))


@dataclass(frozen=True, slots=True)
class RewardOutput:
    """Scores of a batch of videos."""

    scores: dict[str, Scores]
    """Score of each video, by reward."""
    objective: Scores
    """Sum of the terms' contributions, per video."""
    gradient_norms: dict[str, Scores]
    """L2 norm of each term's part of ∂objective/∂frames, per video, by reward; empty if no gradient was
    computed. They show whether one term dominates the objective."""
    latents_gradient_norms: Scores | None = None
    """L2 norm of ∂objective/∂latents per video, before it was clipped; None where nothing is clipped."""


@dataclass(frozen=True, slots=True)
class ObjectiveFuture:
    """The pending objective of a batch of videos and its gradient."""

    frames: Frames
    prompts: Sequence[str]
    terms: Sequence[RewardTerm]
    positions: Sequence[Tensor]
    """For each term, the positions in ``frames`` of the frames that it scores, for `Tensor.gather`."""
    pending: dict[int, RewardFuture[tuple[Scores, Frames]]]
    """Requests to remote rewards, by the index of their term."""
    chunk_size: int

    def result(self) -> tuple[RewardOutput, Frames]:
        """Compute local rewards, wait for remote ones; return scores and ∂(sum of the objective)/∂frames.

        Terms are summed in their order, so the result does not depend on which rewards are remote.
        """
        local = dict[int, tuple[Scores, Frames]]()
        if self.pending:  # otherwise one gradient at a time is in memory
            local = {i: self._compute(i) for i in range(len(self.terms)) if i not in self.pending}
        d_frames, objective = torch.zeros_like(self.frames), self.frames.new_zeros(len(self.frames))
        scores, gradient_norms = dict[str, Scores](), dict[str, Scores]()
        for i, term in enumerate(self.terms):
            if i in self.pending:
                values, gradient = self.pending[i].result()
            else:
                values, gradient = local.pop(i) if i in local else self._compute(i)
            weighted = gradient * term.slope(values)[:, None, None, None, None]
            d_frames.scatter_add_(1, self.positions[i], weighted.to(d_frames.dtype))
            objective += term.value(values).to(objective.dtype)
            scores[term.name] = values
            gradient_norms[term.name] = weighted.flatten(1).norm(dim=1)
        return RewardOutput(scores, objective, gradient_norms), d_frames

    def _compute(self, i: int) -> tuple[Scores, Frames]:
        reward = self.terms[i].reward
        assert not isinstance(reward, RemoteReward)
        return score_and_gradient(
            reward,
            self.frames.gather(1, self.positions[i]),
            self.prompts,
            self.chunk_size,
            name=self.terms[i].name,
        )


def submit_rewards(
    frames: Frames,
    indices: Sequence[int],
    prompts: Sequence[str],
    terms: Sequence[RewardTerm],
    frame_indices: Sequence[Sequence[Sequence[int]]],
    chunk_size: int,
) -> ObjectiveFuture:
    """Send frames to the remote rewards; `ObjectiveFuture.result` computes the others and waits.

    Args:
        frames: decoded frames, of which only the values are used.
        indices: index in the video of each of these frames.
        prompts: text of each video's prompt.
        terms: rewards of the objective.
        frame_indices: indices in the video of the frames to score, for each term and each video.
        chunk_size: number of frames of a video that a frame reward scores at once.
    """
    frames = frames.detach()
    positions = gather_indices(frames, indices, frame_indices)
    pending = {
        i: term.reward.submit_gradient(frames.gather(1, positions[i]), prompts, chunk_size)
        for i, term in enumerate(terms)
        if isinstance(term.reward, RemoteReward)
    }
    return ObjectiveFuture(frames, prompts, terms, positions, pending, chunk_size)


def gather_indices(
    frames: Frames, indices: Sequence[int], frame_indices: Sequence[Sequence[Sequence[int]]]
) -> list[Tensor]:
    """Return for each term the tensor with which ``frames.gather(1, …)`` selects the frames it scores.

    Args:
        frames: decoded frames.
        indices: index in the video of each of these frames.
        frame_indices: indices in the video of the frames to select, for each term and each video.
    """
    position = {frame: i for i, frame in enumerate(indices)}
    rows = [[[position[frame] for frame in row] for row in chosen] for chosen in frame_indices]
    return [
        torch.tensor(row, device=frames.device)[:, :, None, None, None].expand(-1, -1, *frames.shape[2:])
        for row in rows
    ]


def score_and_gradient(
    reward: Reward,
    frames: Frames,
    prompts: Sequence[str],
    chunk_size: int,
    *,
    num_frames: int | None = None,
    name: str = "reward",
) -> tuple[Scores, Frames]:
    """Return one reward's scores and ∂(sum of scores)/∂frames; frame rewards are computed in chunks.

    Args:
        num_frames: number of frames of a video that the reward scores in all, if ``frames`` are a part of
            them: the result is then their part of the scores.
        name: of the reward in the recipe, for messages.

    Raises:
        UserError: the reward has no gradient.
        RunFailed: the reward raised an exception, or did not return one score per video.
    """
    given = frames.shape[1]
    size = chunk_size if reward.granularity == "frame" else given
    scores, gradients = frames.new_zeros(len(frames)), []
    for start in range(0, given, size):
        chunk = frames[:, start : start + size].clone().requires_grad_()
        with torch.enable_grad():
            values = call_reward(reward, chunk, prompts, name)
        weighted = values * (chunk.shape[1] / (num_frames or given))
        gradients.append(call_gradient(weighted, chunk, name))
        scores += weighted.detach().to(scores.dtype)
    return scores, torch.cat(gradients, dim=1)
