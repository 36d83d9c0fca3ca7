"""DDPO-IS: denoising as a Markov decision process, its policy gradient with importance sampling (arXiv 2305.13301).

A denoising step is an action with the Gaussian density of the stochastic scheduler; the reward comes after the last. No
gradient of the reward is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vader_ray.alignment.base import StepContext, UpdateResult
from vader_ray.alignment.reward_gradient import RewardTerm
from vader_ray.alignment.rollout import Batching, Rollout
from vader_ray.alignment.scoring import objectives, sample_and_score
from vader_ray.config import DdpoConfig
from vader_ray.types import Scores, Trajectory, VideoModel

_SMALLEST_DEVIATION = 1e-8


@dataclass(frozen=True, slots=True)
class Ddpo:
    """Several updates on the videos of one step."""

    settings: DdpoConfig

    def updates(
        self,
        model: VideoModel,
        terms: Sequence[RewardTerm],
        rollout: Rollout,
        batching: Batching,
        whole: StepContext,
    ) -> Iterator[UpdateResult]:
        """See `vader_ray.alignment.base.Algorithm`; remembers the last objectives of each prompt."""
        trajectories, scored = sample_and_score(model, terms, rollout, batching)
        advantages = self._advantages(rollout, objectives(scored), whole)
        for _ in range(self.settings.num_updates):
            ratios = list[Tensor]()
            start = 0
            for trajectory in trajectories:
                part = rollout.part(start, start + len(trajectory))
                own = advantages[start : start + len(trajectory)]
                ratios += self._accumulate(model, trajectory, part, own, batching.micro, 1 / whole.num_videos)
                start += len(trajectory)
            yield UpdateResult(scored, trajectories[0].stochastic, self._measures(torch.cat(ratios)))

    def _advantages(self, rollout: Rollout, mine: Scores, whole: StepContext) -> Scores:
        """The normalised objectives of this worker's videos, clipped."""
        told = list(zip(rollout.seeds, rollout.prompts, mine.tolist(), strict=True))
        seeds, prompts, values = zip(*whole.gather(told), strict=True)
        remember(whole.memory, prompts, values, self.settings.buffer_size)
        normalised = normalise(whole.memory, prompts, values, self.settings.min_count)
        place = {seed: position for position, seed in enumerate(seeds)}
        bound = self.settings.max_advantage
        return mine.new_tensor([normalised[place[seed]] for seed in rollout.seeds]).clamp(-bound, bound)

    def _accumulate(
        self,
        model: VideoModel,
        trajectory: Trajectory,
        rollout: Rollout,
        advantages: Scores,
        micro: int,
        scale: float,
    ) -> list[Tensor]:
        """Add the gradient of the mean loss over the denoising steps, one step at a time; the importance ratios."""
        ratios = []
        for start in range(0, len(trajectory), micro):
            cut = slice(start, min(start + micro, len(trajectory)))
            part, conditioning = trajectory[cut], rollout.conditioning[cut]
            rows = []
            for step in trajectory.stochastic:
                now = model.log_probabilities(part, conditioning, step)
                loss, ratio = clipped_loss(
                    now, part.log_probabilities[:, step], advantages[cut], self.settings.clip_range
                )
                (loss.sum() * (scale / len(trajectory.stochastic))).backward()
                rows.append(ratio)
            ratios.append(torch.stack(rows, dim=1))
        return ratios

    def _measures(self, ratios: Tensor) -> dict[str, list[float]]:
        """Per video: how far the policy has moved from the one that made it, and the share of its steps that were clipped."""
        moved = (ratios - 1).abs()
        clipped = (moved > self.settings.clip_range).double().mean(dim=1)
        return {"ratio_change": moved.mean(dim=1).tolist(), "clipped_share": clipped.tolist()}


def clipped_loss(now: Scores, then: Scores, advantages: Scores, clip_range: float) -> tuple[Scores, Scores]:
    """−min(r·A, clip(r, 1 ± clip_range)·A) and the ratio r = p_now/p_then of each video (arXiv 2305.13301, section 4.3)."""
    ratio = (now - then.to(now.dtype)).exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return -torch.minimum(ratio * advantages, clipped * advantages), ratio.detach()


def remember(
    memory: dict[str, list[float]], prompts: Sequence[str], values: Sequence[float], buffer_size: int
) -> None:
    """Add the objectives to what is remembered of their prompts, of each the last ``buffer_size``; only finite ones."""
    for prompt, value in zip(prompts, values, strict=True):
        if np.isfinite(value):
            memory[prompt] = [*memory.get(prompt, ()), value][-buffer_size:]


def normalise(
    memory: dict[str, list[float]], prompts: Sequence[str], values: Sequence[float], min_count: int
) -> list[float]:
    """Objectives in standard deviations from the mean of their prompt, of the whole step where fewer are remembered.

    Per-prompt normalisation of arXiv 2305.13301, section 5.
    """

    def against(value: float, others: Sequence[float]) -> float:
        return float((value - np.mean(others)) / (np.std(others) + _SMALLEST_DEVIATION))

    known = [memory.get(prompt, []) for prompt in prompts]
    return [
        against(value, own if len(own) >= min_count else values)
        for value, own in zip(values, known, strict=True)
    ]
