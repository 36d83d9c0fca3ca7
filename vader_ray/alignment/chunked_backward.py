"""Decode, score and differentiate one chunk of frames after another, so that no chunk is decoded twice.

`vader_ray.alignment.decoding.decode` decodes earlier chunks again in the backward pass, because a reward may
need all frames before any gradient is known. A reward that is a mean over frames needs only those of the
chunk: its gradient is computed while the decoder's graph of the chunk is in memory. The results are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vader_ray.alignment.gradient_clip import clip_by_video
from vader_ray.alignment.precision import matmul_precision
from vader_ray.alignment.reward_gradient import RewardOutput, RewardTerm, score_and_gradient
from vader_ray.alignment.rollout import Batching, Rollout
from vader_ray.gradients import backward
from vader_ray.types import Frames, Latents, RemoteReward, Scores, VideoDecoder


def is_separable(
    latents: Latents, decoder: VideoDecoder, terms: Sequence[RewardTerm], rollout: Rollout
) -> bool:
    """Return whether `backward_by_chunk` can be used for these videos.

    The rewards must be in this process and score the same frames of every video. If the decoder makes more
    than one chunk, it must decode each without the others, and every term must be a sum over frames: a frame
    reward without a target or a hinge.
    """
    if any(isinstance(term.reward, RemoteReward) for term in terms):
        return False
    if any(list(row) != list(rows[0]) for rows in rollout.frame_indices for row in rows):
        return False
    if len(decoder.chunks(latents, rollout.wanted_frames())) == 1:
        return True
    return decoder.chunks_are_independent and all(
        term.reward.granularity == "frame" and term.is_linear for term in terms
    )


def backward_by_chunk(
    latents: Latents,
    decoder: VideoDecoder,
    terms: Sequence[RewardTerm],
    rollout: Rollout,
    batching: Batching,
    scale: float,
    max_norm: float | None = None,
) -> RewardOutput:
    """Add −scale · ∂(sum of the objective)/∂adapter through decoder and gradient steps; return the scores.

    In memory at once are the decoder's graph of one chunk and one reward's graph: that of ``batching.chunk``
    frames for a frame reward, that of the clip for a clip reward.

    Args:
        latents: sampled latents with their graph.
        rollout: prompts of the videos and the frames to score; see `is_separable`.
        batching: number of frames of a video that a frame reward scores at once, and precision.
        max_norm: see `vader_ray.alignment.algorithms.vader.accumulate_gradient`.
    """
    leaf = latents.detach().requires_grad_()
    totals = [_Total(term, rows[0], latents) for term, rows in zip(terms, rollout.frame_indices, strict=True)]
    with matmul_precision(batching.matmul_precision):
        for chunk in decoder.chunks(latents, rollout.wanted_frames()):
            with torch.enable_grad():
                frames, _ = decoder.decode(leaf, None, chunk)
            d_frames = torch.zeros_like(frames)
            for total in totals:
                total.add_gradient(d_frames, frames.detach(), chunk, rollout.prompts, batching.chunk)
            frames.backward(d_frames.mul_(-scale))
    assert leaf.grad is not None
    norms = None if max_norm is None else clip_by_video(leaf.grad, max_norm, scale)
    backward(latents, leaf.grad)
    objective = torch.zeros_like(totals[0].scores)
    for total in totals:
        objective += total.term.value(total.scores)
    return RewardOutput(
        {total.term.name: total.scores for total in totals},
        objective,
        {total.term.name: total.squares.sqrt() for total in totals},
        norms,
    )


class _Total:
    """Scores of one term, and the squared norm of its gradient, summed over chunks."""

    def __init__(self, term: RewardTerm, frames: Sequence[int], latents: Latents) -> None:
        assert not isinstance(term.reward, RemoteReward)
        self.term, self.reward, self._frames = term, term.reward, set(frames)
        wide = torch.promote_types(latents.dtype, torch.float32)
        self.scores: Scores = latents.new_zeros(len(latents), dtype=wide)
        self.squares: Tensor = torch.zeros_like(self.scores)

    def add_gradient(
        self, d_frames: Frames, frames: Frames, chunk: Sequence[int], prompts: Sequence[str], chunk_size: int
    ) -> None:
        """Add ∂(sum of the term)/∂frames of the chunk's frames that the term scores."""
        positions = [position for position, frame in enumerate(chunk) if frame in self._frames]
        if not positions:
            return
        scores, gradient = score_and_gradient(
            self.reward,
            frames.index_select(1, torch.tensor(positions, device=frames.device)),
            prompts,
            chunk_size,
            num_frames=len(self._frames),
            name=self.term.name,
        )
        weighted = gradient * self.term.slope(scores)[:, None, None, None, None]
        d_frames[:, positions] += weighted.to(d_frames.dtype)
        self.scores += scores
        self.squares += weighted.flatten(1).square().sum(dim=1)
