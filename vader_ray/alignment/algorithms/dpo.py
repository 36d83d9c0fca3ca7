"""Diffusion-DPO: prefer the better of two videos by their denoising errors against the pretrained model's (arXiv 2311.12908).

Pairs are made and ranked by the reward as training goes, or given. No gradient of the reward is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from vader_ray.alignment.base import StepContext, UpdateResult
from vader_ray.alignment.reward_gradient import RewardTerm
from vader_ray.alignment.rollout import Batching, Rollout
from vader_ray.alignment.scoring import objectives, sample_and_score
from vader_ray.config import DpoConfig
from vader_ray.types import Scores, Trajectory, VideoModel

PerPair: TypeAlias = Float[Tensor, " pairs"]
PerDraw: TypeAlias = Float[Tensor, " draws"]


@dataclass(frozen=True, slots=True)
class Dpo:
    """Several updates on the pairs of one step: videos 2k and 2k + 1 have one prompt."""

    settings: DpoConfig
    num_inference_steps: int

    def updates(
        self,
        model: VideoModel,
        terms: Sequence[RewardTerm],
        rollout: Rollout,
        batching: Batching,
        whole: StepContext,
    ) -> Iterator[UpdateResult]:
        """See `vader_ray.alignment.base.Algorithm`."""
        assert len(rollout) % 2 == 0
        if rollout.given is None:
            trajectories, scored = sample_and_score(model, terms, rollout, batching)
            trajectory = type(trajectories[0]).join(trajectories)
            first_is_better = torch.sign(objectives(scored).unflatten(0, (-1, 2)).diff(dim=1).flatten().neg())
        else:
            trajectory, scored, first_is_better = rollout.given, [], torch.ones(len(rollout) // 2)
        generators = [torch.Generator().manual_seed(seed) for seed in rollout.draws[::2]]
        scale = 2 / whole.num_videos / self.settings.num_draws
        for _ in range(self.settings.num_updates):
            losses, margins = list[float](), list[float]()
            for step, drawn in self._draw(generators):
                for start in range(0, len(drawn), max(1, batching.micro // 2)):
                    some = drawn[start : start + max(1, batching.micro // 2)]
                    loss, margin = self._accumulate(
                        model, trajectory, rollout, first_is_better, step, some, scale
                    )
                    losses += loss.tolist()
                    margins += margin.tolist()
            yield UpdateResult(
                scored, (), {"loss": losses, "preference_accuracy": [float(margin > 0) for margin in margins]}
            )

    def _draw(self, generators: Sequence[torch.Generator]) -> list[tuple[int, list[tuple[int, int]]]]:
        """Denoising steps, and the pairs that drew them with the seed of the noise that the two videos share."""
        drawn = dict[int, list[tuple[int, int]]]()
        for pair, generator in enumerate(generators):
            for _ in range(self.settings.num_draws):
                step = int(torch.randint(self.num_inference_steps, (), generator=generator))
                drawn.setdefault(step, []).append((pair, int(torch.randint(2**62, (), generator=generator))))
        return sorted(drawn.items())

    def _accumulate(
        self,
        model: VideoModel,
        trajectory: Trajectory,
        rollout: Rollout,
        first_is_better: PerPair,
        step: int,
        drawn: Sequence[tuple[int, int]],
        scale: float,
    ) -> tuple[PerDraw, PerDraw]:
        """Add the gradient of some pairs that drew the same denoising step; their losses and margins."""
        videos = [video for pair, _ in drawn for video in (2 * pair, 2 * pair + 1)]
        noise_seeds = [seed for _, seed in drawn for _ in range(2)]
        some, conditioning = trajectory[videos], rollout.conditioning[videos]
        with torch.no_grad(), model.without_adapter():
            reference = model.denoising_errors(some, conditioning, noise_seeds, step)
        errors = model.denoising_errors(some, conditioning, noise_seeds, step)
        signs = first_is_better[[pair for pair, _ in drawn]]
        loss, margin = preference_loss(errors, reference, signs, self.settings.beta)
        (loss.sum() * scale).backward()
        return loss.detach(), margin.detach()


def preference_loss(
    errors: Scores, reference: Scores, first_is_better: PerPair, beta: float
) -> tuple[PerPair, PerPair]:
    """−log σ(−(β/2)·[(e_w − r_w) − (e_l − r_l)]) of each pair, and the argument of σ (arXiv 2311.12908, eq. 14).

    Errors e of the trained and r of the pretrained model are means over the elements, and β/2 stands for the equation's
    βTω(λₜ), both as in the authors' code, so that their values of β (2000, 5000) mean the same here.

    Args:
        errors: of two videos for each pair, one after the other.
        reference: likewise.
        first_is_better: of each pair 1, −1, or 0 where neither is: then the loss is 0. Not a number stays not a number.
    """
    gained = (errors - reference).unflatten(0, (-1, 2))
    signs = first_is_better.to(gained)
    margin = -beta / 2 * signs * (gained[:, 0] - gained[:, 1])
    return -functional.logsigmoid(margin) * signs.abs(), margin
