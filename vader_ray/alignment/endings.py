"""Several endings of each video: more gradients from one sampling, with less variance (arXiv 2309.17400)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from vader_ray.alignment.reward_gradient import RewardOutput
from vader_ray.alignment.rollout import Rollout
from vader_ray.errors import UserError
from vader_ray.types import EndingsModel, Latents, SamplingModel, Scores, Sliceable, TruncationPlan


def check_model(model: SamplingModel) -> None:
    """Refuse a model that cannot take finished videos back to a denoising step.

    Raises:
        UserError: the message names the remedy.
    """
    if not isinstance(model, EndingsModel):
        raise UserError(
            "sampling.num_endings needs a model that repeats the last denoising steps of finished videos, "
            f"which {type(model).__name__} does not (vader_ray.types.EndingsModel); set it to 1"
        )
    model.check_endings()


def sample_endings(
    model: SamplingModel, state: Sliceable, videos: Rollout, plan: TruncationPlan
) -> Iterator[Latents]:
    """Yield the latents of each ending of the videos with their graph, the first as without this option."""
    if plan.num_endings == 1:
        yield model.sample_with_grad(state, videos.conditioning, plan)
        return
    assert isinstance(model, EndingsModel)
    seeds = [[ending_seed(seed, ending) for seed in videos.seeds] for ending in range(1, plan.num_endings)]
    yield from model.sample_endings(state, videos.conditioning, plan, seeds)


def ending_seed(seed: int, ending: int) -> int:
    """Derive the seed of an ending's noise from the seed of the video; source: numpy's SeedSequence."""
    return int(np.random.SeedSequence([seed, ending]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def mean_outputs(outputs: Sequence[RewardOutput], num_endings: int) -> list[RewardOutput]:
    """Return the mean over each video's endings; the endings of a batch of videos follow each other."""
    if num_endings == 1:
        return list(outputs)
    batches = [outputs[start : start + num_endings] for start in range(0, len(outputs), num_endings)]
    return [
        RewardOutput(
            _means([output.scores for output in endings]),
            torch.stack([output.objective for output in endings]).mean(dim=0),
            _means([output.gradient_norms for output in endings]),
            _mean([output.latents_gradient_norms for output in endings]),
        )
        for endings in batches
    ]


def _mean(columns: Sequence[Scores | None]) -> Scores | None:
    given = [column for column in columns if column is not None]
    return torch.stack(given).mean(dim=0) if given else None


def _means(columns: Sequence[dict[str, Scores]]) -> dict[str, Scores]:
    return {name: torch.stack([column[name] for column in columns]).mean(dim=0) for name in columns[0]}
