"""Videos and their rewards without gradient, for algorithms that need no more."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vader_ray.alignment.reward_gradient import Scored, Term, ask_scores, decode
from vader_ray.alignment.rollout import Batching, Rollout
from vader_ray.types import Chain, Latents, VideoModel


@torch.no_grad()
def sample_and_score(
    model: VideoModel, terms: Sequence[Term], rollout: Rollout, batching: Batching
) -> tuple[list[Chain], list[Scored]]:
    """The rollout's videos with all samples of their denoising, and what the rewards say, ``batching.prefix`` at a time."""
    chains, outcomes = list[Chain](), list[Scored]()
    for part in rollout.parts(batching.prefix):
        chain = model.sample_chain(part.conditioning, part.seeds)
        assert chain.latents is not None
        chains.append(chain)
        outcomes.append(score(model, terms, part, chain.latents, batching.chunk))
    return chains, outcomes


def score(model: VideoModel, terms: Sequence[Term], rollout: Rollout, latents: Latents, chunk_size: int) -> Scored:
    """What the rewards say of decoded latents; rewards of other processes are asked before any answer is awaited."""
    wanted = sorted({frame for chosen in rollout.seen for row in chosen for frame in row})
    frames, indices = decode(latents, model.codec, wanted)
    place = {frame: position for position, frame in enumerate(indices)}
    answers = []
    for term, chosen in zip(terms, rollout.seen, strict=True):
        seen = torch.stack([video[[place[frame] for frame in row]] for video, row in zip(frames, chosen, strict=True)])
        answers.append(ask_scores(term.reward, seen, rollout.prompts, chunk_size))
    scores = {term.name: answer() for term, answer in zip(terms, answers, strict=True)}
    objective = torch.stack([term.value(scores[term.name]).to(frames.dtype) for term in terms]).sum(dim=0)
    return Scored(scores, objective, {})


def objectives(scored: Sequence[Scored]) -> Tensor:
    """The objective of every video."""
    return torch.cat([part.objective for part in scored])
