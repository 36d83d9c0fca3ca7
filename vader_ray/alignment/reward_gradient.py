"""The staged reward gradient: ∂objective/∂frames of any rewards over all frames, at about the memory of one chunk.

The denoiser needs nothing from decoder and rewards but ∂R/∂latents, so the backward pass is cut at the frames:
`decode` keeps of each chunk only its input (it is recomputed when its gradient is asked for), `ask` differentiates one
reward at a time and chunk by chunk, or has other processes do it, and ``frames.backward(d_frames)`` goes on through the
decoder into the graded denoising steps. Every stage is exact; the whole equals one monolithic autograd graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vader_ray.types import Frames, Latents, RemoteReward, Reward, Scores, VideoDecoder

_Answer: TypeAlias = Callable[[], tuple[Scores, Frames]]
"""The scores of one reward and ∂(sum of scores)/∂frames, when they are called for."""


@dataclass(frozen=True, slots=True)
class RewardTerm:
    """One reward of the objective: ``weight · score``, or ``−weight · |score − target|``."""

    name: str
    reward: Reward | RemoteReward
    weight: float = 1.0
    target: float | None = None
    frames: str = "all"

    def value(self, scores: Scores) -> Scores:
        """The term's share of the objective, per video."""
        return self.weight * (scores if self.target is None else -(scores - self.target).abs())

    def slope(self, scores: Scores) -> Scores:
        """∂value/∂score, per video."""
        ones = torch.ones_like(scores)
        return self.weight * (ones if self.target is None else -torch.sign(scores - self.target))


@dataclass(frozen=True, slots=True)
class RewardOutput:
    """What the rewards said of a batch of videos."""

    scores: dict[str, Scores]
    objective: Scores
    gradient_norms: dict[str, Scores]
    """Norm of each term's share of ∂objective/∂frames, per video: shows a mix that one term dominates."""


def decode(latents: Latents, decoder: VideoDecoder, wanted: Sequence[int]) -> tuple[Frames, list[int]]:
    """The wanted frames (or a few more) with a graph that holds no activations of the decoder, and their indices."""
    portions, indices, state = [], list[int](), None
    for chunk in decoder.chunks(latents, wanted):
        portion, state = checkpoint(
            decoder.decode, latents, state, chunk, use_reentrant=False, preserve_rng_state=False
        )
        portions.append(portion)
        indices.extend(chunk)
    return torch.cat(portions, dim=1), indices


def ask(
    frames: Frames,
    indices: Sequence[int],
    prompts: Sequence[str],
    terms: Sequence[RewardTerm],
    seen: Sequence[Sequence[Sequence[int]]],
    chunk_size: int,
) -> Callable[[], tuple[RewardOutput, Frames]]:
    """Send the frames to the rewards of other processes; the call that is returned computes the others' and waits.

    It gives the scores, and ∂(sum of the objective over the batch)/∂frames as laid out in ``frames``, of which only the
    values are used.

    Args:
        frames: decoded frames.
        indices: which frame of the video each one is.
        seen: for each term and each video, the indices of the frames that the reward looks at.
        chunk_size: frames of a video that a frame reward sees at once.
    """
    frames = frames.detach()
    places = [_places(frames, indices, chosen) for chosen in seen]
    answers = [
        _ask(term.reward, frames, where, prompts, chunk_size)
        for term, where in zip(terms, places, strict=True)
    ]
    return lambda: _collect(frames, terms, places, answers)


def _places(frames: Frames, indices: Sequence[int], chosen: Sequence[Sequence[int]]) -> Tensor:
    """For `Tensor.gather`, where the chosen frames of each video are."""
    place = {frame: position for position, frame in enumerate(indices)}
    positions = torch.tensor([[place[frame] for frame in row] for row in chosen], device=frames.device)
    return positions[:, :, None, None, None].expand(-1, -1, *frames.shape[2:])


def _ask(
    reward: Reward | RemoteReward, frames: Frames, where: Tensor, prompts: Sequence[str], chunk_size: int
) -> _Answer:
    if isinstance(reward, RemoteReward):
        return reward.submit_gradient(frames.gather(1, where), prompts, chunk_size)
    return lambda: score_and_gradient(reward, frames.gather(1, where), prompts, chunk_size)


def _collect(
    frames: Frames, terms: Sequence[RewardTerm], places: Sequence[Tensor], answers: Sequence[_Answer]
) -> tuple[RewardOutput, Frames]:
    """Sums in the order of the terms, whoever computes them; while others compute, this process does its own share."""
    served = [isinstance(term.reward, RemoteReward) for term in terms]
    done = {i: answer() for i, answer in enumerate(answers) if not served[i]} if any(served) else {}
    d_frames, objective = torch.zeros_like(frames), frames.new_zeros(len(frames))
    scores, gradient_norms = dict[str, Scores](), dict[str, Scores]()
    for i, (term, where) in enumerate(zip(terms, places, strict=True)):
        values, gradient = done.pop(i) if i in done else answers[i]()
        share = gradient * term.slope(values)[:, None, None, None, None]
        d_frames.scatter_add_(1, where, share.to(d_frames.dtype))
        objective += term.value(values).to(objective.dtype)
        scores[term.name] = values
        gradient_norms[term.name] = share.flatten(1).norm(dim=1)
    return RewardOutput(scores, objective, gradient_norms), d_frames


def score_and_gradient(
    reward: Reward, frames: Frames, prompts: Sequence[str], chunk_size: int
) -> tuple[Scores, Frames]:
    """One reward's scores and ∂(sum of scores)/∂frames, in chunks where it looks at single frames.

    Raises:
        ValueError: the reward has no gradient, or not one score per video.
    """
    num_frames = frames.shape[1]
    size = chunk_size if reward.granularity == "frame" else num_frames
    scores, gradients = frames.new_zeros(len(frames)), []
    for start in range(0, num_frames, size):
        chunk = frames[:, start : start + size].clone().requires_grad_()
        with torch.enable_grad():
            values = reward(chunk, prompts)
        weighted = values * (chunk.shape[1] / num_frames)
        gradients.append(_gradient(weighted, chunk, reward))
        scores += weighted.detach().to(scores.dtype)
    return scores, torch.cat(gradients, dim=1)


def _gradient(scores: Tensor, frames: Frames, reward: Reward) -> Tensor:
    name = type(reward).__module__
    if scores.shape != (len(frames),):
        raise ValueError(
            f"reward {name} returned shape {tuple(scores.shape)} for {len(frames)} videos; it must return one score per video"
        )
    if not scores.requires_grad:
        raise ValueError(
            f"reward {name} has no gradient with respect to the frames; compute it with differentiable torch operations"
        )
    (gradient,) = torch.autograd.grad(scores.sum(), frames)
    return gradient


def submit_scores(
    reward: Reward | RemoteReward, frames: Frames, prompts: Sequence[str], chunk_size: int
) -> Callable[[], Scores]:
    """As `ask`, of one reward and without gradient."""
    if isinstance(reward, RemoteReward):
        return reward.submit_scores(frames, prompts, chunk_size)
    return lambda: score_only(reward, frames, prompts, chunk_size)


@torch.no_grad()
def score_only(reward: Reward, frames: Frames, prompts: Sequence[str], chunk_size: int) -> Scores:
    """One reward's scores without gradient, in chunks where it looks at single frames."""
    num_frames = frames.shape[1]
    size = chunk_size if reward.granularity == "frame" else num_frames
    total = frames.new_zeros(len(frames))
    for chunk in frames.split(size, dim=1):
        total += (reward(chunk, prompts) * (chunk.shape[1] / num_frames)).to(total.dtype)
    return total
