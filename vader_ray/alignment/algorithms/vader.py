"""VADER: ascend the reward by its gradient through the last denoising steps (arXiv 2407.08737, Algorithm 1)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from vader_ray.alignment.base import StepContext, UpdateResult
from vader_ray.alignment.reward_gradient import RewardOutput, RewardTerm, ask, decode
from vader_ray.alignment.rollout import Batching, Rollout
from vader_ray.types import Frames, RemoteReward, TruncationPlan, VideoModel

Answer: TypeAlias = Callable[[], tuple[RewardOutput, Frames]]


@dataclass(frozen=True, slots=True)
class Vader:
    """One update per step, by the gradient of the reward."""

    plan: TruncationPlan

    def updates(
        self,
        model: VideoModel,
        terms: Sequence[RewardTerm],
        rollout: Rollout,
        batching: Batching,
        whole: StepContext,
    ) -> Iterator[UpdateResult]:
        """See `vader_ray.alignment.base.Algorithm`."""
        scored = accumulate_gradient(model, terms, rollout, self.plan, batching, scale=1 / whole.num_videos)
        yield UpdateResult(scored, self.plan.grad_steps)


def accumulate_gradient(
    model: VideoModel,
    terms: Sequence[RewardTerm],
    rollout: Rollout,
    plan: TruncationPlan,
    batching: Batching,
    *,
    scale: float,
) -> list[RewardOutput]:
    """Add −scale · ∂(sum of the objective)/∂adapter to the adapter's gradients; the scores, micro-batch by micro-batch.

    Where the plan pulls, its distance to the pretrained model is part of the objective, and not of the scores.
    ``scale`` is one over the videos of the step on all workers, so that the sum of the workers' gradients is that of
    the mean objective. The minus makes an optimizer that descends ascend the reward. While rewards of other processes
    answer for one micro-batch, the next is sampled and decoded: two graphs are in memory then, and the sums are the same.
    """
    plan = replace(plan, reference_weight=scale * plan.reference_weight)
    lookahead = int(any(isinstance(term.reward, RemoteReward) for term in terms))
    waiting, outcomes = deque[tuple[Frames, Answer]](), list[RewardOutput]()
    for part in rollout.parts(batching.prefix):
        state = model.sample_prefix(part.conditioning, plan, part.seeds)
        for start in range(0, len(part), batching.micro):
            stop = min(start + batching.micro, len(part))
            micro = part.part(start, stop)
            latents = model.sample_with_grad(state[slice(start, stop)], micro.conditioning, plan)
            wanted = sorted({frame for chosen in micro.seen for row in chosen for frame in row})
            frames, indices = decode(latents, model.decoder, wanted)
            waiting.append((frames, ask(frames, indices, micro.prompts, terms, micro.seen, batching.chunk)))
            if len(waiting) > lookahead:
                outcomes.append(_settle(*waiting.popleft(), scale))
    return outcomes + [_settle(*left, scale) for left in waiting]


def _settle(frames: Frames, answer: Answer, scale: float) -> RewardOutput:
    """Wait for the rewards and go back through decoder and graded denoising steps."""
    scored, d_frames = answer()
    frames.backward(d_frames.mul_(-scale))
    return scored
