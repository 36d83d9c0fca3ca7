"""Diffusion-DPO: prefer the better of two videos, by their denoising errors (arXiv 2311.12908).

The pairs are sampled and ranked by the objective in every step, or given in a file. The gradient of the
reward is not used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional

from vader_ray.alignment.base import Algorithm, StepContext, UpdateResult, trajectory_model
from vader_ray.alignment.reward_gradient import RewardTerm
from vader_ray.alignment.rollout import Batching, Rollout
from vader_ray.alignment.scoring import objectives, sample_and_score
from vader_ray.config import ExperimentConfig, Settings
from vader_ray.errors import UserError
from vader_ray.gradients import backward
from vader_ray.paths import PairsFile
from vader_ray.types import SamplingModel, Scores, Trajectory, TrajectoryModel

PerPair: TypeAlias = Float[Tensor, " pairs"]
PerDraw: TypeAlias = Float[Tensor, " draws"]


class DiffusionDPOSettings(Settings):
    """Options of Diffusion-DPO. Its timesteps are those of ``sampling``."""

    num_updates: PositiveInt = 1
    """Optimizer updates on the pairs of one step, each over all of them with fresh timesteps and noise."""
    num_draws: PositiveInt = 1
    """Timesteps and noises drawn for each pair in each update; time is proportional to it."""
    beta: PositiveFloat = 2000.0
    """Strength of the KL penalty that keeps the model near the pretrained one; the authors use 2000
    and 5000."""
    pairs: PairsFile | None = None
    """File of given pairs, Parquet or JSON lines with ``prompt``, ``winner`` and ``loser`` (``.mp4`` videos,
    or ``.npy`` frames as uint8 ``frames height width 3``). By default pairs are sampled in every step and
    ranked by the objective."""


class DiffusionDPOAlgorithm(Algorithm[DiffusionDPOSettings]):
    """Several optimizer updates on the pairs of one step: videos 2k and 2k + 1 have one prompt."""

    settings_class = DiffusionDPOSettings
    group_size = 2
    calls_depend_on_videos = True  # pairs with the same drawn denoising step share a call

    @property
    def pairs_file(self) -> str | None:
        """File of given pairs of videos to train on; None samples the videos."""
        return self.settings.pairs

    def check(self, config: ExperimentConfig) -> None:
        """Refuse a number of videos that gives the workers unequal numbers of pairs."""
        num_workers = config.runtime.num_workers
        if config.videos_per_step % (2 * num_workers):
            raise UserError(
                f"algorithm.name=dpo compares pairs, and videos_per_step={config.videos_per_step} gives "
                f"runtime.num_workers={num_workers} no equal number of them; "
                f"choose a multiple of {2 * num_workers}"
            )

    def check_model(self, model: SamplingModel) -> None:
        """Refuse a model that gives no denoising errors."""
        trajectory_model(model, "dpo")

    def updates(
        self,
        model: SamplingModel,
        terms: Sequence[RewardTerm],
        rollout: Rollout,
        batching: Batching,
        context: StepContext,
    ) -> Iterator[UpdateResult]:
        """Sample and rank pairs; then ``num_updates`` times add the preference loss's gradient and yield."""
        assert len(rollout) % 2 == 0
        model = trajectory_model(model, "dpo")
        if rollout.given is None:
            trajectories, outputs = sample_and_score(model, terms, rollout, batching)
            trajectory = type(trajectories[0]).join(trajectories)
            first_is_better = torch.sign(
                objectives(outputs).unflatten(0, (-1, 2)).diff(dim=1).flatten().neg()
            )
        else:
            trajectory, outputs, first_is_better = rollout.given, [], torch.ones(len(rollout) // 2)
        generators = [torch.Generator().manual_seed(seed) for seed in rollout.draw_seeds[::2]]
        scale, size = 2 / context.num_videos / self.settings.num_draws, max(1, batching.micro // 2)
        for _ in range(self.settings.num_updates):
            losses, margins = list[float](), list[float]()
            for step, drawn in self._draw(generators):
                for start in range(0, len(drawn), size):
                    loss, margin = self._accumulate(
                        model, trajectory, rollout, first_is_better, step, drawn[start : start + size], scale
                    )
                    losses += loss.tolist()
                    margins += margin.tolist()
            accuracy = [float(margin > 0) for margin in margins]
            yield UpdateResult(outputs, metrics={"loss": losses, "preference_accuracy": accuracy})

    def _draw(self, generators: Sequence[torch.Generator]) -> list[tuple[int, list[tuple[int, int]]]]:
        """Draw denoising steps; return each with its pairs and the noise seed of each pair."""
        drawn = dict[int, list[tuple[int, int]]]()
        for pair, generator in enumerate(generators):
            for _ in range(self.settings.num_draws):
                step = int(torch.randint(self.sampling.num_inference_steps, (), generator=generator))
                drawn.setdefault(step, []).append((pair, int(torch.randint(2**62, (), generator=generator))))
        return sorted(drawn.items())

    def _accumulate(
        self,
        model: TrajectoryModel,
        trajectory: Trajectory,
        rollout: Rollout,
        first_is_better: PerPair,
        step: int,
        drawn: Sequence[tuple[int, int]],
        scale: float,
    ) -> tuple[PerDraw, PerDraw]:
        """Add the gradient of some pairs at one denoising step; return their losses and margins."""
        videos = [video for pair, _ in drawn for video in (2 * pair, 2 * pair + 1)]
        noise_seeds = [seed for _, seed in drawn for _ in range(2)]
        part, conditioning = trajectory[videos], rollout.conditioning[videos]
        with torch.no_grad(), model.without_adapter():
            reference = model.denoising_errors(part, conditioning, noise_seeds, step)
        errors = model.denoising_errors(part, conditioning, noise_seeds, step)
        signs = first_is_better[[pair for pair, _ in drawn]]
        loss, margin = preference_loss(errors, reference, signs, self.settings.beta)
        backward(loss.sum() * scale)
        return loss.detach(), margin.detach()


def preference_loss(
    errors: Scores, reference: Scores, first_is_better: PerPair, beta: float
) -> tuple[PerPair, PerPair]:
    """Return −log σ(m) and the margin m = −(β/2)·[(e_w − r_w) − (e_l − r_l)] of each pair.

    Equation 14 of arXiv 2311.12908.

    The errors e of the trained and r of the pretrained model are means over the elements, and β/2 stands for
    the equation's βTω(λₜ). Both are as in the authors' code, so that their values of β (2000, 5000) have the
    same effect here.

    Args:
        errors: denoising errors of the trained model; videos 2k and 2k + 1 are a pair.
        reference: denoising errors of the pretrained model.
        first_is_better: for each pair 1, −1, or 0 if neither is better, which gives loss 0. NaN gives NaN.
        beta: strength of the KL penalty that keeps the model near the pretrained one.
    """
    gained = (errors - reference).unflatten(0, (-1, 2))
    signs = first_is_better.to(gained)
    margin = -beta / 2 * signs * (gained[:, 0] - gained[:, 1])
    return -functional.logsigmoid(margin) * signs.abs(), margin
