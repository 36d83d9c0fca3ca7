"""DDPO-IS: policy gradient over the denoising steps, with importance sampling (arXiv 2305.13301).

A denoising step is an action with the Gaussian density of the stochastic scheduler; the reward follows the
last step. The gradient of the reward is not used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from vader_ray.alignment.base import Algorithm, StepContext, UpdateResult, trajectory_model
from vader_ray.alignment.reward_gradient import RewardTerm
from vader_ray.alignment.rollout import Batching, Rollout
from vader_ray.alignment.scoring import objectives, sample_and_score
from vader_ray.config import ExperimentConfig, Settings
from vader_ray.errors import UserError
from vader_ray.gradients import backward
from vader_ray.types import SamplingModel, Scores, Trajectory, TrajectoryModel

_MIN_DEVIATION = 1e-8
"""Added to a standard deviation before the division."""


class DDPOSettings(Settings):
    """Options of DDPO; it needs ``sampling.eta`` above 0."""

    num_updates: PositiveInt = 1
    """Optimizer updates on the videos of one step, each over all of them."""
    clip_range: PositiveFloat = 1e-4
    """PPO's clip range of the importance ratio per latent element: beyond 1 ± this, a denoising step has no
    gradient."""
    max_advantage: PositiveFloat = 5.0
    """Bound on the absolute advantage, in standard deviations of the reward."""
    buffer_size: PositiveInt = 32
    """Latest rewards of each prompt from which its mean and standard deviation are computed."""
    min_count: PositiveInt = 16
    """Rewards of a prompt from which on its own mean and standard deviation are used; before, those of the
    step's videos."""

    @model_validator(mode="after")
    def _buffer_fills(self) -> DDPOSettings:
        if self.min_count > self.buffer_size:
            raise UserError(
                f"min_count={self.min_count} is never reached by buffer_size={self.buffer_size}; "
                "raise buffer_size"
            )
        return self


class DDPOAlgorithm(Algorithm[DDPOSettings]):
    """Several optimizer updates on the videos of one step."""

    settings_class = DDPOSettings

    def check(self, config: ExperimentConfig) -> None:
        """Refuse a deterministic sampling, which has no density."""
        if config.sampling.eta == 0:
            raise UserError(
                "algorithm.name=ddpo needs stochastic denoising steps; "
                "set sampling.eta to 1 (DDIM alone has it)"
            )

    def check_model(self, model: SamplingModel) -> None:
        """Refuse a model whose scheduler does not give the probability of a denoising step."""
        trajectory_model(model, "ddpo").check_densities()

    def updates(
        self,
        model: SamplingModel,
        terms: Sequence[RewardTerm],
        rollout: Rollout,
        batching: Batching,
        context: StepContext,
    ) -> Iterator[UpdateResult]:
        """Sample and score videos; then ``num_updates`` times add the clipped loss's gradient and yield."""
        model = trajectory_model(model, "ddpo")
        trajectories, outputs = sample_and_score(model, terms, rollout, batching)
        advantages = self._advantages(rollout, objectives(outputs), context)
        for _ in range(self.settings.num_updates):
            ratios = list[Tensor]()
            start = 0
            for trajectory in trajectories:
                stop = start + len(trajectory)
                part = rollout.part(start, stop)
                ratios += self._accumulate(
                    model, trajectory, part, advantages[start:stop], batching.micro, 1 / context.num_videos
                )
                start = stop
            yield UpdateResult(outputs, trajectories[0].stochastic, self._metrics(torch.cat(ratios)))

    def _advantages(self, rollout: Rollout, own: Scores, context: StepContext) -> Scores:
        """Normalise this worker's objectives by the statistics over all workers, and clip them."""
        rows = context.gather(list(zip(rollout.seeds, rollout.prompts, own.tolist(), strict=True)))
        seeds, prompts, rewards = zip(*rows, strict=True)
        tracker = PromptStatTracker(
            context.algorithm_state, self.settings.buffer_size, self.settings.min_count
        )
        tracker.add(prompts, rewards)
        by_seed = dict(zip(seeds, tracker.normalise(prompts, rewards), strict=True))
        bound = self.settings.max_advantage
        return own.new_tensor([by_seed[seed] for seed in rollout.seeds]).clamp(-bound, bound)

    def _accumulate(
        self,
        model: TrajectoryModel,
        trajectory: Trajectory,
        rollout: Rollout,
        advantages: Scores,
        micro: int,
        scale: float,
    ) -> list[Tensor]:
        """Add the gradient of the mean loss over denoising steps; return the ratios, ``videos steps``."""
        ratios = []
        for start in range(0, len(trajectory), micro):
            cut = slice(start, min(start + micro, len(trajectory)))
            part, conditioning = trajectory[cut], rollout.conditioning[cut]
            columns = []
            for step in trajectory.stochastic:
                now = model.log_probabilities(part, conditioning, step)
                loss, ratio = clipped_loss(
                    now, part.log_probabilities[:, step], advantages[cut], self.settings.clip_range
                )
                backward(loss.sum() * (scale / len(trajectory.stochastic)))
                columns.append(ratio)
            ratios.append(torch.stack(columns, dim=1))
        return ratios

    def _metrics(self, ratios: Tensor) -> dict[str, list[float]]:
        """Per video: mean change of the importance ratio, and fraction of its steps that are clipped."""
        change = (ratios - 1).abs()
        clipped = (change > self.settings.clip_range).double().mean(dim=1)
        return {"ratio_change": change.mean(dim=1).tolist(), "clipped_share": clipped.tolist()}


def clipped_loss(now: Scores, then: Scores, advantages: Scores, clip_range: float) -> tuple[Scores, Scores]:
    """Return −min(r·A, clip(r, 1 ± clip_range)·A) and the ratio r per video (arXiv 2305.13301, section 4.3).

    Args:
        now: log-probabilities under the current adapter.
        then: log-probabilities under the adapter that sampled the videos; r = exp(now − then).
        advantages: A.
        clip_range: largest change of r with gradient.
    """
    ratio = (now - then.to(now.dtype)).exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return -torch.minimum(ratio * advantages, clipped * advantages), ratio.detach()


@dataclass(frozen=True, slots=True)
class PromptStatTracker:
    """Latest rewards of each prompt, for the per-prompt normalisation of arXiv 2305.13301, section 5."""

    rewards: dict[str, list[float]]
    """Latest rewards by prompt; `add` changes them in place."""
    buffer_size: int
    """Number of rewards that are kept of each prompt."""
    min_count: int
    """Number of rewards from which on a prompt is normalised by its own."""

    def add(self, prompts: Sequence[str], rewards: Sequence[float]) -> None:
        """Add the rewards of new videos; those that are not finite are left out."""
        for prompt, reward in zip(prompts, rewards, strict=True):
            if np.isfinite(reward):
                self.rewards[prompt] = [*self.rewards.get(prompt, ()), reward][-self.buffer_size :]

    def normalise(self, prompts: Sequence[str], rewards: Sequence[float]) -> list[float]:
        """Return each reward's distance from the mean of its prompt in standard deviations.

        Prompts with fewer than ``min_count`` rewards use mean and standard deviation of the given rewards.
        """
        own = [self.rewards.get(prompt, []) for prompt in prompts]
        references = [latest if len(latest) >= self.min_count else rewards for latest in own]
        return [
            float((reward - np.mean(reference)) / (np.std(reference) + _MIN_DEVIATION))
            for reward, reference in zip(rewards, references, strict=True)
        ]
