"""VADER: ascend the reward by its gradient through the last denoising steps (arXiv 2407.08737)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pydantic import Field, NonNegativeFloat

from vader_ray.alignment import clips, endings
from vader_ray.alignment.base import Algorithm, StepContext, UpdateResult
from vader_ray.alignment.chunked_backward import backward_by_chunk, is_separable
from vader_ray.alignment.decoding import decode
from vader_ray.alignment.gradient_clip import add_norms, clip_by_video, norm_limit
from vader_ray.alignment.precision import matmul_precision
from vader_ray.alignment.reward_gradient import ObjectiveFuture, RewardOutput, RewardTerm, submit_rewards
from vader_ray.alignment.rollout import Batching, Rollout
from vader_ray.alignment.truncation import check_plan, draw_plan
from vader_ray.config import ExperimentConfig, MatmulPrecision, Settings
from vader_ray.errors import UserError
from vader_ray.gradients import backward
from vader_ray.types import Frames, Latents, RemoteReward, SamplingModel, TruncationPlan


class VaderSettings(Settings):
    """Options of VADER; ``sampling`` chooses the gradient steps."""

    reference_penalty: NonNegativeFloat = 0.0
    """Coefficient β of −β · mean‖ε_adapter − ε_base‖² in the objective: the squared distance between the
    denoiser's predictions with the adapter and without it for the same latents, a mean over elements and
    gradient steps, a sum over the guidance branches. Keeps the model near the pretrained one; costs one more
    denoiser call for each gradient step."""
    gradient_clip_quantile: float | None = Field(default=None, gt=0.0, lt=1.0)
    """Clip ∂objective/∂latents of each video: its norm is at most this quantile of the norms of the last 256
    videos before the step, e.g. 0.8 (RSM, arXiv 2604.17415). A video with an unusually steep reward then does
    not decide the step. The first step clips nothing; the norms are part of the checkpoint."""


class VaderAlgorithm(Algorithm[VaderSettings]):
    """One optimizer update per step, by the gradient of the reward."""

    settings_class = VaderSettings
    uses_gradient_steps = True

    def check(self, config: ExperimentConfig) -> None:
        """Refuse gradient steps that cannot be, or do not fit the penalty or the memory settings."""
        plan = check_plan(self.sampling)
        if self.sampling.num_clips > 1 and self.settings.gradient_clip_quantile is not None:
            raise UserError(
                f"algorithm.gradient_clip_quantile={self.settings.gradient_clip_quantile:g} clips the "
                f"gradient of a video's latents, and with sampling.num_clips={self.sampling.num_clips} a "
                "video has several, one of which follows from the other; leave one of the two out"
            )
        truncation, checkpointing = self.sampling.truncation, config.runtime.activation_checkpointing
        if truncation in ("velocity_matching", "ode_adjoint") and not self.settings.reference_penalty:
            raise UserError(
                f"algorithm.reference_penalty=0 leaves sampling.truncation={truncation} without the squared "
                "distance to the base model's predictions, of which it is a part; set a number above 0"
            )
        if plan.base_adjoint and checkpointing != "none":
            raise UserError(
                f"runtime.activation_checkpointing={checkpointing} would recompute the base model's blocks "
                f"with the adapter, and sampling.truncation={truncation} needs them without it; set none"
            )
        needs_base = plan.base_adjoint or self.settings.reference_penalty
        if needs_base and (encoders := config.adapter.text_encoders()):
            raise UserError(
                f"adapter.networks: {encoders[0]} changes the prompt embeddings, and sampling.truncation="
                f"{truncation} with algorithm.reference_penalty={self.settings.reference_penalty:g} needs "
                f"predictions of the base model for its own embeddings; leave {encoders[0]} out, or set the "
                "penalty to 0 and choose another truncation"
            )

    def check_model(self, model: SamplingModel) -> None:
        """Refuse a model that cannot sample several endings or clips, if the recipe has them."""
        if self.sampling.num_endings > 1:
            endings.check_model(model)
        if self.sampling.num_clips > 1:
            clips.check_model(model)

    def updates(
        self,
        model: SamplingModel,
        terms: Sequence[RewardTerm],
        rollout: Rollout,
        batching: Batching,
        context: StepContext,
    ) -> Iterator[UpdateResult]:
        """Add the gradient of the mean objective over the step's videos, and yield once."""
        plan = draw_plan(
            self.sampling,
            context.generator,
            lambda: model.sampling_schedule(rollout.conditioning[:1]),
        )
        quantile = self.settings.gradient_clip_quantile
        max_norm = None if quantile is None else norm_limit(quantile, context.algorithm_state)
        outputs = accumulate_gradient(
            model,
            terms,
            rollout,
            plan,
            batching,
            scale=1 / context.num_videos,
            reference_penalty=self.settings.reference_penalty,
            max_norm=max_norm,
        )
        metrics = dict[str, list[float]]()
        if max_norm is not None:
            own = [float(norm) for output in outputs for norm in _latents_norms(output)]
            add_norms(context.gather(own), context.algorithm_state)
            metrics["latents_gradient_norm"] = own
            metrics["clipped_share"] = [float(norm > max_norm) for norm in own]
        yield UpdateResult(outputs, plan.grad_steps, metrics)


def _latents_norms(output: RewardOutput) -> list[float]:
    norms = output.latents_gradient_norms
    assert norms is not None
    return [] if norms.is_meta else norms.tolist()  # an estimate has no values


def accumulate_gradient(  # noqa: PLR0913
    model: SamplingModel,
    terms: Sequence[RewardTerm],
    rollout: Rollout,
    plan: TruncationPlan,
    batching: Batching,
    *,
    scale: float,
    reference_penalty: float = 0.0,
    max_norm: float | None = None,
) -> list[RewardOutput]:
    """Add −scale · ∂(sum of the objective)/∂adapter to the adapter's gradients; return the scores.

    The minus makes an optimizer that descends ascend the objective. While remote rewards compute one
    micro-batch, the next is sampled and decoded: the graphs of two micro-batches are then in memory, and the
    sums are the same. Videos of several clips wait for their rewards.

    Args:
        model: the model with its adapter.
        terms: rewards of the objective.
        rollout: prompts, conditioning and noise seeds of the videos.
        plan: gradient steps of the sampling; endings, over which gradients and scores are averaged; clips.
        batching: numbers of videos and frames in memory at once.
        scale: 1 / number of videos of the step over all workers, so that the sum of the workers' gradients is
            that of the mean objective.
        reference_penalty: see `VaderSettings`; part of the gradient and not of the returned objective.
        max_norm: largest L2 norm of ∂objective/∂latents of a video and ending; larger ones are scaled down.
            None clips nothing and measures no norms.
    """
    scale = scale / plan.num_endings
    num_steps = len(plan.grad_steps) * plan.num_gradient_clips
    plan = replace(plan, reference_weight=scale * reference_penalty / num_steps)
    lookahead = int(any(isinstance(term.reward, RemoteReward) for term in terms))
    pending, outputs = deque[_Pending](), list[RewardOutput]()
    for part in rollout.parts(batching.prefix):
        sampled = clips.sample_clips(model, part, plan, batching)
        for start in range(0, len(part), batching.micro):
            stop = min(start + batching.micro, len(part))
            micro, rows = part.part(start, stop), slice(start, stop)
            if plan.num_clips > 1:
                chain = clips.Chain(model, micro, [clip[rows] for clip in sampled], plan, batching)
                outputs.append(chain.accumulate(terms, scale))
                continue
            samples = endings.sample_endings(model, sampled[0].state[rows], micro, plan)
            for latents in samples:
                if is_separable(latents, model.decoder, terms, micro):
                    outputs.append(
                        backward_by_chunk(latents, model.decoder, terms, micro, batching, scale, max_norm)
                    )
                    continue
                pending.append(_decode(model, latents, terms, micro, batching))
                if len(pending) > lookahead:
                    outputs.append(_backward(pending.popleft(), scale, batching.matmul_precision, max_norm))
    outputs += [_backward(last, scale, batching.matmul_precision, max_norm) for last in pending]
    return endings.mean_outputs(outputs, plan.num_endings)


@dataclass(frozen=True, slots=True)
class _Pending:
    """Decoded videos whose rewards are computed."""

    latents: Latents
    """Latents with the graph of the gradient steps."""
    leaf: Latents
    """The same values, at which the decoder's graph begins."""
    frames: Frames
    future: ObjectiveFuture


def _decode(
    model: SamplingModel, latents: Latents, terms: Sequence[RewardTerm], micro: Rollout, batching: Batching
) -> _Pending:
    """Decode latents, in a graph of their own, and send the frames to remote rewards."""
    leaf = latents.detach().requires_grad_()
    with matmul_precision(batching.matmul_precision):
        frames, indices = decode(leaf, model.decoder, micro.wanted_frames())
        future = submit_rewards(frames, indices, micro.prompts, terms, micro.frame_indices, batching.chunk)
    return _Pending(latents, leaf, frames, future)


def _backward(
    videos: _Pending, scale: float, precision: MatmulPrecision, max_norm: float | None
) -> RewardOutput:
    """Wait for the rewards, and backpropagate through the decoder and then through the gradient steps."""
    with matmul_precision(precision):
        output, d_frames = videos.future.result()
        videos.frames.backward(d_frames.mul_(-scale))
    gradient = videos.leaf.grad
    assert gradient is not None
    norms = None if max_norm is None else clip_by_video(gradient, max_norm, scale)
    backward(videos.latents, gradient)
    return output if norms is None else replace(output, latents_gradient_norms=norms)
