"""Trajectories of denoising: log-probabilities for DDPO, denoising errors for DPO."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vader_ray.errors import UserError
from vader_ray.models.core import transitions
from vader_ray.models.core.conditioning import Conditioning
from vader_ray.models.core.loop_hooks import LoopHook
from vader_ray.models.core.sampling import SamplingPipeline, with_frame_dimension
from vader_ray.models.core.sampling_state import SamplingState, SchedulerState, rows_of
from vader_ray.types import Frames, Latents, Noise, Scores, TruncationPlan


@dataclass(frozen=True, slots=True)
class Trajectory:
    """Videos with every sample of their denoising; one entry per video, can be sliced."""

    seeds: tuple[int, ...]
    latents: Latents | None
    """Input of the decoder; None for videos of a file."""
    samples: tuple[Tensor, ...]
    """Samples before each denoising step and after the last, in the layout of ``scheduler.step``: ``batch``
    or ``batch·frames`` leads."""
    log_probabilities: Tensor
    """log p(next sample | sample) per element, ``batch steps``; ``batch 0`` if the scheduler's density is
    unknown."""
    stochastic: tuple[int, ...] = ()
    """Denoising steps that add noise."""

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, part: slice | list[int]) -> Trajectory:
        chosen = list(range(len(self)))[part] if isinstance(part, slice) else part
        rows = rows_of(chosen, len(self.samples[0]) // len(self))
        return Trajectory(
            seeds=tuple(self.seeds[video] for video in chosen),
            latents=None if self.latents is None else self.latents[chosen],
            samples=tuple(sample[rows] for sample in self.samples),
            log_probabilities=self.log_probabilities[chosen],
            stochastic=self.stochastic,
        )

    @staticmethod
    def join(parts: Sequence[Trajectory]) -> Trajectory:
        """Concatenate trajectories of the same denoising steps."""
        first = parts[0]
        latents = [part.latents for part in parts if part.latents is not None]
        return Trajectory(
            seeds=tuple(seed for part in parts for seed in part.seeds),
            latents=None if first.latents is None else torch.cat(latents),
            samples=tuple(
                torch.cat(column) for column in zip(*(part.samples for part in parts), strict=True)
            ),
            log_probabilities=torch.cat([part.log_probabilities for part in parts]),
            stochastic=first.stochastic,
        )


class TrajectoryPipeline(SamplingPipeline):
    """A diffusers pipeline that also samples trajectories and evaluates single denoising steps of them."""

    _scheduler_is_set_up = False

    def to_scheduler_layout(self, latents: Noise) -> Tensor:
        """Return latents in the layout of the samples that ``scheduler.step`` takes."""
        return self.pack_latents(latents)

    def check_densities(self) -> None:
        """Check that the probability of each denoising step is known.

        Raises:
            UserError: it is not under this scheduler.
        """
        transitions.check_density(self.pipe.scheduler)

    @torch.no_grad()
    def sample_trajectory(self, conditioning: Conditioning, seeds: Sequence[int]) -> Trajectory:
        """Sample without gradient and keep the sample before and after every denoising step."""
        parts = self._parts(len(seeds))
        return Trajectory.join([self._sample_trajectory(conditioning[part], seeds[part]) for part in parts])

    def _sample_trajectory(self, conditioning: Conditioning, seeds: Sequence[int]) -> Trajectory:
        densities = self.sampling.eta > 0 and transitions.has_density(self.pipe.scheduler)
        hook = TrajectoryRecorder(seeds, densities=densities)
        latents = self._run_pipeline(self.pack_latents(self.noise(seeds)), conditioning, hook)
        return hook.trajectory(latents)

    @torch.no_grad()
    def encode_videos(self, frames: Frames, seeds: Sequence[int]) -> Trajectory:
        """Return the trajectories of given videos; each consists of the encoded video alone.

        Raises:
            UserError: encoding with this family's autoencoder is not implemented.
        """
        encode: Callable[[Frames], Latents] | None = getattr(self.decoder, "encode", None)
        if encode is None:
            raise UserError(
                "algorithm.pairs: the videos of a file can be encoded by autoencoders of single frames and "
                f"by Open-Sora's, not by {type(self.pipe.vae).__name__}; leave algorithm.pairs out, then "
                "pairs are made during training"
            )
        latents = encode(frames.to(self.pipe.device)).to(self._sampling_dtype())
        samples = (self.to_scheduler_layout(latents),)
        return Trajectory(tuple(seeds), None, samples, latents.new_zeros(len(seeds), 0))

    def log_probabilities(self, trajectory: Trajectory, conditioning: Conditioning, step: int) -> Scores:
        """Return log p(next sample | sample) of one denoising step per element of the latents.

        Differentiable in the adapter.
        """
        parts = self._parts(len(trajectory))
        return torch.cat([self._log_probabilities(trajectory[p], conditioning[p], step) for p in parts])

    def _log_probabilities(self, trajectory: Trajectory, conditioning: Conditioning, step: int) -> Scores:
        with torch.enable_grad():
            reached = self._reach(trajectory.samples[step], trajectory.seeds, conditioning, step, {})
            mean, deviation = transitions.transition(reached.step, reached.given)
            return transitions.log_density(trajectory.samples[step + 1], mean, deviation, len(trajectory))

    def denoising_errors(
        self, trajectory: Trajectory, conditioning: Conditioning, noise_seeds: Sequence[int], step: int
    ) -> Scores:
        """Return the denoiser's mean squared error on each video at the noise level of a denoising step.

        The error is that of the denoiser's own target (noise, velocity or flow) without guidance; it is
        differentiable in the adapter.

        Args:
            trajectory: finished videos; only their last sample is used.
            conditioning: of the same videos.
            noise_seeds: one per video; videos with the same seed get the same noise.
            step: denoising step; 0 is the noisiest.
        """
        parts = self._parts(len(trajectory))
        return torch.cat(
            [self._denoising_errors(trajectory[p], conditioning[p], noise_seeds[p], step) for p in parts]
        )

    def _denoising_errors(
        self, trajectory: Trajectory, conditioning: Conditioning, noise_seeds: Sequence[int], step: int
    ) -> Scores:
        clean = trajectory.samples[-1]
        self._set_up_scheduler(clean, conditioning)
        shape = (len(clean) // len(trajectory), *clean.shape[1:])
        draws = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in noise_seeds]
        sample, target = transitions.noised(self.pipe.scheduler, clean, torch.cat(draws).to(clean), step)
        reached = self._reach(sample, trajectory.seeds, conditioning, step, self.no_guidance_kwargs)
        squares: Tensor = (reached.given["model_output"] - target).square()
        return squares.reshape(len(trajectory), -1).mean(dim=1)

    def _set_up_scheduler(self, sample: Tensor, conditioning: Conditioning) -> None:
        """Run the loop once until it has set the scheduler's timesteps."""
        if not self._scheduler_is_set_up:
            hook = StopBeforeDenoiser([0] * len(conditioning), plan=None)
            with contextlib.suppress(LoopReady):
                self._run_pipeline(self._entry(sample, len(conditioning)), conditioning, hook)
            self._scheduler_is_set_up = True

    def _reach(
        self,
        sample: Tensor,
        seeds: Sequence[int],
        conditioning: Conditioning,
        step: int,
        changes: Mapping[str, float],
    ) -> StepReached:
        """Call the denoiser of one denoising step on a sample in the layout of ``scheduler.step``."""
        plan = TruncationPlan(self.sampling.num_inference_steps, (step,), recompute=False)
        attributes = {"_step_index": step} if hasattr(self.pipe.scheduler, "_step_index") else {}
        state = SamplingState(sample, tuple(seeds), (SchedulerState((sample, sample), attributes),))
        probe = PredictionProbe(seeds, plan=plan, resume=state if step else None)
        try:
            self._run_pipeline(self._entry(sample, len(seeds)), conditioning, probe, **changes)
        except StepReached as reached:
            return reached
        raise AssertionError("the pipeline ended before the denoising step")

    def _entry(self, sample: Tensor, num_videos: int) -> Tensor:
        """Return a sample in the layout of ``scheduler.step`` as the pipeline takes its initial latents."""
        latents = with_frame_dimension(sample, num_videos) if sample.ndim == 4 else sample
        return latents / getattr(self.pipe.scheduler, "init_noise_sigma", 1.0)  # the loop multiplies


class TrajectoryRecorder(LoopHook):
    """Record every sample of the loop.

    Args:
        seeds: one per video.
        densities: record the log-probability of every denoising step, too.
    """

    knows_sound = False

    def __init__(self, seeds: Sequence[int], *, densities: bool) -> None:
        super().__init__(seeds, plan=None)
        self._densities = densities
        self._samples, self._log_probabilities, self._stochastic = list[Tensor](), list[Tensor](), list[int]()

    def advance(self, step: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = inspect.signature(step).bind(*args, **kwargs).arguments
        result = step(*args, **kwargs)
        following = result[0] if isinstance(result, tuple) else result.prev_sample
        self._samples = self._samples or [given["sample"]]
        self._samples.append(following)
        if self._densities:
            mean, deviation = transitions.transition(step, given)
            if deviation > 0:
                self._stochastic.append(self.index)
            density = transitions.log_density(following, mean, deviation, len(self._seeds))
            self._log_probabilities.append(density)
        return result

    def trajectory(self, latents: Latents) -> Trajectory:
        """Return the recorded trajectories; ``latents`` is the input of the decoder."""
        empty = latents.new_zeros(len(self._seeds), 0)
        densities = torch.stack(self._log_probabilities, dim=1) if self._densities else empty
        return Trajectory(
            tuple(self._seeds), latents, tuple(self._samples), densities, tuple(self._stochastic)
        )


class StepReached(Exception):
    """Raised instead of the scheduler's arithmetic; carries its ``step`` and the arguments by name."""

    def __init__(self, step: Callable[..., Any], given: dict[str, Any]) -> None:
        self.step, self.given = step, given


class PredictionProbe(LoopHook):
    """End the loop at the first denoising step that is not skipped, after the denoiser's call."""

    def advance(self, step: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        raise StepReached(step, dict(inspect.signature(step).bind(*args, **kwargs).arguments))


class LoopReady(Exception):
    """Raised instead of the first denoiser call, when the loop has set up its scheduler."""


class StopBeforeDenoiser(LoopHook):
    """End the loop before its first denoiser call."""

    def _denoise(self, *args: Any, **kwargs: Any) -> Any:
        raise LoopReady
