"""Diffusion-DPO: prefer the better of two videos by their denoising errors against the pretrained model's (arXiv 2311.12908).

Pairs are made and ranked by the reward as training goes, or given. No gradient of the reward is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vader_ray.alignment.algorithm import Update, Whole
from vader_ray.alignment.gradient import Term
from vader_ray.alignment.rollout import Batching, Rollout
from vader_ray.alignment.scoring import objectives, sample_and_score
from vader_ray.config import DpoConfig
from vader_ray.types import Batch, Chain, Scores, VideoModel


@dataclass(frozen=True, slots=True)
class Dpo:
    """Several updates on the pairs of one step: videos 2k and 2k + 1 have one prompt."""

    settings: DpoConfig
    num_inference_steps: int

    def updates(
        self, model: VideoModel, terms: Sequence[Term], rollout: Rollout, batching: Batching, whole: Whole
    ) -> Iterator[Update]:
        """See `vader_ray.alignment.algorithm.Algorithm`."""
        assert len(rollout) % 2 == 0
        if rollout.given is None:
            chains, scored = sample_and_score(model, terms, rollout, batching)
            chain = type(chains[0]).join(chains)
            first_is_better = torch.sign(objectives(scored).unflatten(0, (-1, 2)).diff(dim=1).flatten().neg())
        else:
            chain, scored, first_is_better = rollout.given, [], torch.ones(len(rollout) // 2)
        generators = [torch.Generator().manual_seed(seed) for seed in rollout.draws[::2]]
        scale = 2 / whole.num_videos / self.settings.num_draws
        for _ in range(self.settings.num_updates):
            found = [
                self._accumulate(model, chain[pair], rollout.conditioning[pair], sign, generator, scale)
                for pair, sign, generator in zip(_pairs(len(rollout)), first_is_better, generators, strict=True)
                for _ in range(self.settings.num_draws)
            ]
            losses, margins = zip(*found, strict=True)
            yield Update(scored, (), {"loss": list(losses), "preference_accuracy": [float(margin > 0) for margin in margins]})

    def _accumulate(
        self, model: VideoModel, pair: Chain, conditioning: Batch, sign: Tensor, generator: torch.Generator, scale: float
    ) -> tuple[float, float]:
        """Add a pair's gradient at one drawn denoising step and noise, which its two videos share; loss and margin."""
        step = int(torch.randint(self.num_inference_steps, (), generator=generator))
        noise_seeds = [int(torch.randint(2**62, (), generator=generator))] * 2
        with torch.no_grad(), model.without_adapter():
            reference = model.denoising_errors(pair, conditioning, noise_seeds, step)
        errors = model.denoising_errors(pair, conditioning, noise_seeds, step)
        loss, margin = preference_loss(errors, reference, sign, self.settings.beta)
        (loss * scale).backward()
        return float(loss.detach()), float(margin.detach())


def preference_loss(errors: Scores, reference: Scores, first_is_better: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """−log σ(−(β/2)·[(e_w − r_w) − (e_l − r_l)]) of one pair, and the argument of σ (arXiv 2311.12908, eq. 14).

    Errors e of the trained and r of the pretrained model are means over the elements, and β/2 stands for the equation's
    βTω(λₜ), both as in the authors' code, so that their values of β (2000, 5000) mean the same here.

    Args:
        first_is_better: 1, −1, or 0 where neither is: then the loss is 0. Not a number stays not a number.
    """
    gained = errors - reference
    margin = -beta / 2 * first_is_better.to(gained) * (gained[0] - gained[1])
    return -functional.logsigmoid(margin) * first_is_better.to(gained).abs(), margin


def _pairs(num_videos: int) -> Iterator[slice]:
    return (slice(start, start + 2) for start in range(0, num_videos, 2))
