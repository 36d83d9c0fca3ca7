"""An algorithm outside the package: denoising errors weighted by exp(objective / temperature)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from pydantic import PositiveFloat

from vader_ray.alignment.base import Algorithm, StepContext, UpdateResult, trajectory_model
from vader_ray.alignment.reward_gradient import RewardTerm
from vader_ray.alignment.rollout import Batching, Rollout
from vader_ray.alignment.scoring import objectives, sample_and_score
from vader_ray.config import Settings
from vader_ray.types import SamplingModel


class RewardWeightedSettings(Settings):
    """Options of reward-weighted regression."""

    temperature: PositiveFloat = 1.0
    """Difference of the objective that changes a video's weight by the factor e."""


class RewardWeightedAlgorithm(Algorithm[RewardWeightedSettings]):
    """One optimizer update per step, on the videos of the step."""

    settings_class = RewardWeightedSettings

    def check_model(self, model: SamplingModel) -> None:
        """Refuse a model that gives no denoising errors."""
        trajectory_model(model, "reward_weighted")

    def updates(
        self,
        model: SamplingModel,
        terms: Sequence[RewardTerm],
        rollout: Rollout,
        batching: Batching,
        context: StepContext,
    ) -> Iterator[UpdateResult]:
        """Sample and score videos, add the gradient of their weighted denoising errors, and yield."""
        model = trajectory_model(model, "reward_weighted")
        trajectories, outputs = sample_and_score(model, terms, rollout, batching)
        trajectory = type(trajectories[0]).join(trajectories)
        step = int(torch.randint(self.sampling.num_inference_steps, (), generator=context.generator))
        errors = model.denoising_errors(trajectory, rollout.conditioning, rollout.draw_seeds, step)
        weights = (objectives(outputs) / self.settings.temperature).exp()
        ((weights * errors).sum() / context.num_videos).backward()
        yield UpdateResult(outputs, metrics={"error": errors.tolist()})
