"""Several endings of one sampling: the gradient steps once more from the finished video with fresh noise.

The low-variance estimator DRaFT-LV of arXiv 2309.17400, for the last K denoising steps instead of the last
one alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from vader_ray.models.core import transitions
from vader_ray.models.core.conditioning import Conditioning
from vader_ray.models.core.loop_hooks import LoopHook
from vader_ray.models.core.sampling import SamplingPipeline
from vader_ray.models.core.sampling_state import SamplingState, SchedulerState
from vader_ray.types import Latents, TruncationPlan


class EndingsPipeline(SamplingPipeline):
    """A diffusers pipeline that samples its gradient steps several times from one prefix."""

    def check_endings(self) -> None:
        """Check that a finished video can be taken back to a denoising step.

        Raises:
            UserError: not under this scheduler.
        """
        transitions.check_renoising(self.pipe.scheduler)

    def sample_endings(
        self,
        state: SamplingState,
        conditioning: Conditioning,
        plan: TruncationPlan,
        seeds: Sequence[Sequence[int]],
    ) -> Iterator[Latents]:
        """Yield the latents of `sample_with_grad`, and then one further ending for each row of seeds.

        A further ending begins at the plan's first gradient step with the finished video, to which noise has
        been added; no gradient flows into that video. Each is sampled when it is requested.

        Args:
            state: samplings that were stopped before the first gradient step, which is not the first step of
                all.
            conditioning: of the same videos.
            plan: the last denoising steps.
            seeds: for each further ending the seed of each video's noise.
        """
        parts = list(self._parts(len(state)))
        hooks = [FinalSample(state[part].seeds, plan=plan, resume=state[part]) for part in parts]
        yield torch.cat(
            [
                self._run_with_grad(state[part], conditioning[part], hook)
                for part, hook in zip(parts, hooks, strict=True)
            ]
        )
        for row in seeds:
            yield torch.cat(
                [
                    self._sample_with_grad(
                        self._renoised(state[part], hook.final, row[part], plan.grad_steps[0]),
                        conditioning[part],
                        plan,
                    )
                    for part, hook in zip(parts, hooks, strict=True)
                ]
            )

    def _renoised(
        self, state: SamplingState, final: Tensor, seeds: Sequence[int], step: int
    ) -> SamplingState:
        """Return the state before a denoising step of videos that are finished."""
        shape = (len(final) // len(state), *final.shape[1:])
        draws = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        sample = transitions.renoised(self.pipe.scheduler, final, torch.cat(draws).to(final), step)
        (before,) = state.schedulers
        renoised = SchedulerState((sample, *before.outputs[1:]), before.attributes)
        return SamplingState(state.noise, tuple(seeds), (renoised,))


class FinalSample(LoopHook):
    """Keep the sample after the last denoising step, without its graph."""

    knows_sound = False
    final: Tensor

    def advance(self, step: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = step(*args, **kwargs)
        sample = result[0] if isinstance(result, tuple) else result.prev_sample
        self.final = sample.detach().clone()  # some pipelines change it in place
        return result
